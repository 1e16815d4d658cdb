# SPDX-License-Identifier: Apache-2.0
"""Loads a model with its weights from wherever they are.

A source is one of

    mambaout_femto.in1k                   key of the catalog of published weights
    hf_hub:owner/name                     model repository on the Hugging Face hub; or name@revision
    https://…/mambaout_femto.pth          file of the web
    weights.safetensors, last.pth.tar     file of PyTorch tensors, by its contents safetensors or of
                                          torch.save; safetensors also of our own
    runs/quickstart                       working directory of a training run here
    exported                              folder with the config.json and the weights that timm
                                          writes for the hub

A file of our own names its tensors by their path, "params/backbone/stem/conv1/kernel"; PyTorch's
names have no slash, which tells them apart.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mambaout_jax.backbone import Classifier
from mambaout_jax.layers.positions import height_and_width
from mambaout_jax.models import create_backbone, create_model, find_variant
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.weights.convert import (
    CLASSIFIER,
    POSITIONS,
    check_variables,
    from_torch_as_saved,
    to_torch,
    torch_shape,
    unwrap,
    widen,
)
from mambaout_jax.weights.files import read_safetensors, unflatten
from mambaout_jax.weights.locate import MODEL_KEY, locate
from mambaout_jax.weights.tensors import (
    Tensors,
    fit_positions,
    named_in_torch,
    tensors_of,
    trained_image_size,
)

_LOG = logging.getLogger("mambaout_jax")


def load_pretrained(
    source: str | Path,
    name: str | None = None,
    reset_head: bool = False,
    *,
    ema: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[Classifier, dict[str, Any]]:
    """A model and its variables.

    Every parameter comes from the source and every tensor of the source is used, but for the last
    layer with `reset_head` or with `num_classes=0`.

    Args:
        source: see the top of this file.
        name: one of `list_models()`; None to take it from the source.
        reset_head: initialise the last layer afresh. Needed for another `num_classes` than the
            weights have; a line of the log names the parameters.
        ema: take the averaged weights where the source keeps them beside the raw ones.
        seed: seed of the last layer's initialisation.
        **options: options of `create_model`. By default `num_classes` is that of the weights (0
            gives the features that the last layer would read), and `image_size` that of the
            position table, a square one where it can be; for another the table is interpolated.

    Returns:
        The model, and a nested dict of numpy arrays: float32 or wider from PyTorch's files, as
        they were saved from ours.

    Raises:
        FileNotFoundError: the source, or a file of it, is not there.
        ValueError: the source does not say which model it is of, is damaged, might run code, or
            does not fit the model; the message lists what does not fit.
        RuntimeError: a download failed, or no checkpoint of a run can be read.
    """
    model, flat = _load(source, name, reset_head, ema, seed, options)
    return model, unflatten_dict(flat)


def describe_source(
    source: str | Path, name: str | None = None, image_size: int | None = None
) -> Preprocessing:
    """How the images of a source's model are prepared, without reading its weights.

    It is what the catalog, the run's config or the hub's `config.json` says; for other files what
    is published for their model, and for a model without published weights the defaults of
    ImageNet at its own size. A file may have other classes than the published weights: use
    `class_names` only where there are as many as the model has outputs.

    Args:
        source, name: see `load_pretrained`.
        image_size: pixels, None for the source's own; the crop is the one published for this size,
            where there is one.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_pretrained`.
    """
    return locate(source, name).preprocessing(image_size)


def save_variables(
    variables: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes variables as safetensors under their own paths, bit for bit.

    The file appears under its name when it is complete.

    Args:
        variables: nested dict of arrays.
        path: ends in .safetensors.
        metadata: notes; under "model" the name of the model, where `load_pretrained` finds it.

    Raises:
        ValueError: `path` has another suffix.
    """
    flat: dict[str, Any] = flatten_dict(dict(variables), sep="/")
    _write({key: np.asarray(value, order="C") for key, value in flat.items()}, path, metadata or {})


def read_variables(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables and the metadata that `save_variables` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names are not paths.
    """
    tensors, metadata = read_safetensors(Path(path).expanduser())
    try:
        return unflatten(tensors), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_file(
    source: str | Path, out: str | Path, name: str | None = None, naming: str | None = None
) -> str:
    """Writes the weights of a source as safetensors, in the dtypes that they have there.

    They are read back and compared.

    Args:
        source, name: see `load_pretrained`.
        out: the file to write, `.safetensors`.
        naming: PyTorch names of the output, a key of the family's `TORCH_NAMES`; None for our own.

    Returns:
        What was written and compared, as text.

    Raises:
        As `load_pretrained`; ValueError where `out` has another suffix; RuntimeError where the
        file does not read back as it was written.
    """
    found = locate(source, name)
    model, flat = _load(source, name, as_saved=True)
    variables = unflatten_dict(flat)
    classes, metadata = model.head.num_classes, {MODEL_KEY: found.name}
    if naming is None:
        save_variables(variables, out, metadata)
    else:
        size = getattr(model.backbone, "image_size", None)
        options = {**found.options, "num_classes": classes, "image_size": size}
        _write(to_torch(found.name, variables, naming, **options), out, metadata)
    _, again = _load(out, found.name, options=found.options, as_saved=True)
    differing = ["/".join(path) for path in flat if not _equal(flat[path], again.get(path))]
    if flat.keys() != again.keys() or differing:
        raise RuntimeError(f"{out} does not read back as written; differing: {differing}")
    return (
        f"{out}: {found.name}, {classes} classes, {naming or 'own'} names; "
        f"round trip: {len(flat)} tensors equal bit for bit"
    )


def _load(
    source: str | Path,
    name: str | None,
    reset_head: bool = False,
    ema: bool = True,
    seed: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    as_saved: bool = False,
) -> tuple[Classifier, dict[tuple[str, ...], Any]]:
    """The model of `load_pretrained` and its variables by path; `as_saved`: in the saved dtypes."""
    found = locate(source, name)
    options = {**found.options, **options}
    num_classes = options.pop("num_classes", None)
    tensors = tensors_of(source, found.fetch(), ema)
    if named_in_torch(tensors):
        tensors = unwrap(found.name, tensors, **options)
    trained = found.options.get("image_size") or trained_image_size(found.name, tensors, options)
    of_weights = {**options, "image_size": trained}
    flat = _to_variables(source, found.name, tensors, of_weights)
    if not as_saved and named_in_torch(tensors):
        flat = {path: widen(leaf) for path, leaf in flat.items()}
    own = flat[CLASSIFIER].shape[-1] if CLASSIFIER in flat else 0
    wanted = own if num_classes is None else num_classes
    image_size = options.pop("image_size", None) or trained
    model = create_model(found.name, num_classes=wanted, image_size=image_size, **options)
    backbone: Any = model.backbone
    if POSITIONS in flat:
        grid = create_backbone(found.name, **of_weights).grid
        flat[POSITIONS] = fit_positions(source, backbone, flat[POSITIONS], grid)
    if wanted not in (0, own) and not reset_head:
        raise ValueError(
            f"{source} has {own} classes, and num_classes={wanted} is asked for; reset_head=True "
            "initialises the last layer afresh and keeps all others"
        )
    if reset_head or wanted != own:
        flat = {path: leaf for path, leaf in flat.items() if path[:-1] != CLASSIFIER[:-1]}
    if reset_head and wanted:
        size = image_size or find_variant(found.name)[1].image_size
        flat |= _fresh_classifier(source, model, size, seed)
    return model, flat


def _equal(one: np.ndarray, other: np.ndarray | None) -> bool:
    """Bit for bit, so that NaN equals itself and 0 is not -0."""
    return (
        other is not None
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and one.tobytes() == other.tobytes()
    )


def _write(tensors: Tensors, path: str | Path, metadata: Mapping[str, str]) -> None:
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is to be a safetensors file; call it {path}.safetensors")
    part = path.with_name(f"{path.name}.incomplete")
    safetensors.numpy.save_file(dict(tensors), part, dict(metadata))
    part.replace(path)


def _to_variables(
    source: str | Path, name: str, tensors: Tensors, options: Mapping[str, Any]
) -> dict[tuple[str, ...], Any]:
    """Variables of the model with the classes that the tensors have, checked, by path."""
    try:
        if named_in_torch(tensors):
            kernel = torch_shape(name, tensors, CLASSIFIER)
            num_classes = kernel[0] if kernel else 0
            return flatten_dict(
                from_torch_as_saved(name, tensors, num_classes=num_classes, **options)
            )
        kernel = tensors.get("/".join(CLASSIFIER))
        variables = unflatten(tensors)
        num_classes = 0 if kernel is None else kernel.shape[-1]
        check_variables(name, variables, num_classes=num_classes, **options)
        return flatten_dict(variables)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _fresh_classifier(
    source: str | Path, model: Classifier, image_size: int | tuple[int, int], seed: int
) -> dict[tuple[str, ...], Any]:
    """The last layer as `model.init` makes it, by path; a line of the log says so."""
    image = jnp.zeros((1, *height_and_width(image_size), model.backbone.in_chans))

    @jax.jit  # which leaves out all that the last layer's parameters do not need
    def init(key):
        variables = flatten_dict(model.init(key, image))
        return {path[-1]: leaf for path, leaf in variables.items() if path[:-1] == CLASSIFIER[:-1]}

    fresh = jax.device_get(init(jax.random.key(seed)))
    layer: dict[tuple[str, ...], Any]
    layer = {(*CLASSIFIER[:-1], leaf): value for leaf, value in fresh.items()}
    names, classes = ", ".join("/".join(path) for path in layer), model.head.num_classes
    _LOG.warning("%s: initialised afresh for %d classes: %s", source, classes, names)
    return layer
