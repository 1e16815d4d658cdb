# SPDX-License-Identifier: Apache-2.0
"""Loads a model with its weights from wherever they are.

A source is one of

    mambaout_femto.in1k                   key of the catalog of published weights
    hf_hub:owner/name                     model repository on the Hugging Face hub; or name@revision
    https://…/mambaout_femto.pth          file of the web
    weights.safetensors, .pth, .pt, .bin  file of PyTorch tensors; .safetensors also of our own
    runs/quickstart                       working directory of a training run here

A file of our own names its tensors by their path, "params/backbone/stem/conv1/kernel"; PyTorch's
names have no slash, which tells them apart.
"""

import difflib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mambaout_jax.backbone import Classifier
from mambaout_jax.config import Config, load_config
from mambaout_jax.models import create_model, find_variant, list_models
from mambaout_jax.train.checkpoint import read_checkpoint
from mambaout_jax.weights.catalog import CATALOG, Preprocessing, Weights, weights_of
from mambaout_jax.weights.convert import (
    CLASSIFIER,
    WRAPPERS,
    check_variables,
    count_classes,
    from_torch,
)
from mambaout_jax.weights.download import hub_file, web_file
from mambaout_jax.weights.torch_file import read_torch_file

_LOG = logging.getLogger("mambaout_jax")
_HUB_PREFIXES = ("hf_hub:", "hf-hub:")  # ours and timm's spelling
_TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
_MODEL_KEY = "model"  # of the metadata of our own files

_Tensors = Mapping[str, np.ndarray]


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
        seed: of the last layer's initialisation.
        **options: of `create_model`. `num_classes` is that of the weights where it is not given;
            0 gives the features that the last layer would read. Any `image_size` will do.

    Returns:
        The model, and a nested dict of numpy arrays: float32 or wider from PyTorch's files, as
        they were saved from ours.

    Raises:
        FileNotFoundError: the source, or a file of it, is not there.
        ValueError: the source does not say which model it is of, is damaged, might run code, or
            does not fit the model; the message lists what does not fit.
        RuntimeError: a download failed, or no checkpoint of a run can be read.
    """
    found = _find(source, name)
    options = {**found.options, **options}
    num_classes = options.pop("num_classes", None)
    tensors = _read(found.fetch(), ema)
    try:
        variables = _to_variables(found.name, tensors, options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error

    flat = flatten_dict(variables)
    own = flat[CLASSIFIER].shape[-1] if CLASSIFIER in flat else 0
    wanted = own if num_classes is None else num_classes
    model = create_model(found.name, num_classes=wanted, **options)
    if wanted == own and not reset_head:
        return model, variables
    if wanted and not reset_head:
        raise ValueError(
            f"{source} has {own} classes, and num_classes={wanted} is asked for; reset_head=True "
            "initialises the last layer afresh and keeps all others"
        )
    kept = {path: leaf for path, leaf in flat.items() if path[:-1] != CLASSIFIER[:-1]}
    fresh = _fresh_classifier(model, found.name, seed) if wanted else {}
    if fresh:
        names = ", ".join("/".join(path) for path in fresh)
        _LOG.warning("%s: initialised afresh for %d classes: %s", source, wanted, names)
    return model, unflatten_dict({**kept, **fresh})


def describe_source(
    source: str | Path, name: str | None = None, image_size: int | None = None
) -> Preprocessing:
    """How the images of a source's model are prepared, without reading its weights.

    It is what the catalog, the run's config or the hub's `config.json` says; for other files what
    is published for their model, and for a model without published weights the defaults of
    ImageNet at its own size. A file may have other classes than the published weights: use
    `class_names` only where there are as many as the model has outputs.

    Args:
        source, name: of `load_pretrained`.
        image_size: pixels, None for the source's own; the crop is the one published for this size,
            where there is one.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_pretrained`.
    """
    return _find(source, name).preprocessing(image_size)


def save_variables(
    variables: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes variables as safetensors under their own paths, bit for bit.

    The file appears under its name when it is complete.

    Args:
        variables: nested dict of arrays.
        path: ends in .safetensors.
        metadata: notes; under "model" the name of the model, where `load_pretrained` finds it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is to be a safetensors file; call it {path}.safetensors")
    flat: dict[str, Any] = flatten_dict(dict(variables), sep="/")
    arrays = {key: np.asarray(value, order="C") for key, value in flat.items()}
    part = path.with_name(f"{path.name}.incomplete")
    safetensors.numpy.save_file(arrays, part, dict(metadata or {}))
    part.replace(path)


def read_variables(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables and the metadata that `save_variables` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    tensors, metadata = _read_safetensors(Path(path))
    return unflatten_dict(tensors, sep="/"), metadata


def model_options(config: Config) -> dict[str, Any]:
    """The options of `create_model` that a config stands for, without `num_classes`."""
    options: dict[str, Any] = dict(config.model.options)
    if config.model.conv_implementation != "auto":  # families without the choice take only "auto"
        options["conv_implementation"] = config.model.conv_implementation
    return {
        "image_size": config.data.image_size,
        "in_chans": config.data.channels,
        "dtype": jnp.dtype(config.model.dtype),
        "drop_path": config.model.drop_path,
        "remat": config.model.remat,
        **options,
    }


class _Found(NamedTuple):
    """A source that is understood, and not yet read.

    Attributes:
        name: of the model.
        fetch: gives the file, or the directory of a run; may download.
        preprocessing: of an image size, None for the source's own; may download.
        options: of `create_model`, that the source itself tells.
    """

    name: str
    fetch: Callable[[], Path]
    preprocessing: Callable[[int | None], Preprocessing]
    options: Mapping[str, Any] = {}


def _find(source: str | Path, name: str | None) -> _Found:
    if name is not None:
        find_variant(name)
    text = str(source)
    if text in CATALOG:
        return _find_published(CATALOG[text], name)
    if text.startswith(_HUB_PREFIXES):
        return _find_on_hub(text[len(_HUB_PREFIXES[0]) :], name)
    if text.startswith(("http://", "https://")):
        name = name or _name_of(Path(unquote(urlsplit(text).path)), text)
        return _Found(name, partial(web_file, text), partial(_published, name))
    path = Path(source).expanduser()
    if path.is_dir():
        config = load_config(path / "config.json")
        preprocessing = partial(_preprocessing_of_run, config)
        return _Found(name or config.model.name, lambda: path, preprocessing, model_options(config))
    if path.is_file():
        name = name or _name_of(path, text)
        return _Found(name, lambda: path, partial(_published, name))
    raise FileNotFoundError(f"there are no weights {text!r}; {_hint(text)}")


def _hint(text: str) -> str:
    keys = list(weights_of(text)) or difflib.get_close_matches(text, CATALOG, n=3)
    if keys:
        return f"did you mean {' or '.join(keys)}?"
    return (
        "it is no file, no directory and no key of the catalog. A repository of the hub begins "
        f"with {_HUB_PREFIXES[0]}, an address with https://; the catalog has {list(CATALOG)}"
    )


def _find_published(weights: Weights, name: str | None) -> _Found:
    if weights.source.startswith(_HUB_PREFIXES):
        repository = weights.source[len(_HUB_PREFIXES[0]) :]
        fetch = partial(hub_file, repository, "model.safetensors", weights.sha256)
    else:
        fetch = partial(web_file, weights.source, weights.sha256)
    return _Found(name or weights.model, fetch, weights.preprocessing)


def _find_on_hub(repository: str, name: str | None) -> _Found:
    for weights in CATALOG.values():
        if weights.source == f"{_HUB_PREFIXES[0]}{repository}":
            return _find_published(weights, name)
    name = name or _name_on_hub(repository)
    fetch = partial(hub_file, repository, "model.safetensors")
    return _Found(name, fetch, partial(_preprocessing_on_hub, repository, name))


def _name_on_hub(repository: str) -> str:
    config = _hub_config(repository)
    name, options = config.get("architecture"), config.get("model_args")
    if name not in list_models() or options:
        raise ValueError(
            f"config.json of {repository} has architecture={name!r} and model_args={options}, "
            f"which is none of {list_models()} as it stands; where the weights are of one with "
            "other options, give name= and these options"
        )
    return name


def _hub_config(repository: str) -> dict[str, Any]:
    """What timm has written next to the weights."""
    return json.loads(hub_file(repository, "config.json").read_text(encoding="utf-8"))


def _name_of(path: Path, source: str) -> str:
    """The model of a file: by its metadata where it is here and our own, else by its name."""
    name = path.name.partition(".")[0]
    if path.suffix == ".safetensors" and path.is_file():
        name = _read_safetensors(path, metadata_only=True)[1].get(_MODEL_KEY, name)
    if name not in list_models():
        raise ValueError(
            f"{source} does not say which model it is of, and {name!r} is none; give name=, one "
            f"of {list_models()}"
        )
    return name


def _published(name: str, image_size: int | None) -> Preprocessing:
    for weights in weights_of(name).values():
        return weights.preprocessing(image_size)
    _, variant = find_variant(name)
    return Preprocessing(image_size or variant.image_size)


def _preprocessing_of_run(config: Config, image_size: int | None) -> Preprocessing:
    return Preprocessing(
        image_size=image_size or config.data.image_size,
        crop_fraction=config.data.crop_fraction,
        interpolation=config.data.interpolation,
        mean=config.data.mean,
        std=config.data.std,
    )


def _preprocessing_on_hub(repository: str, name: str, image_size: int | None) -> Preprocessing:
    config, other = _hub_config(repository), _published(name, image_size)
    given, names = config.get("pretrained_cfg", {}), config.get("label_names")
    return Preprocessing(
        image_size=image_size or given.get("input_size", [other.image_size])[-1],
        crop_fraction=given.get("crop_pct", other.crop_fraction),
        crop_mode=given.get("crop_mode", other.crop_mode),
        interpolation=given.get("interpolation", other.interpolation),
        mean=tuple(given.get("mean", other.mean)),
        std=tuple(given.get("std", other.std)),
        class_names=tuple(names) if isinstance(names, list) else None,
    )


def _read(path: Path, ema: bool) -> _Tensors:
    """All tensors of a file, or of a run's newest checkpoint, under their names there."""
    if path.is_dir():
        state = read_checkpoint(path / "checkpoints").state
        averaged = state.get("ema") if ema else None
        variables = averaged or {"params": state["params"], **state.get("collections", {})}
        return flatten_dict(variables, sep="/")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    if path.suffix not in _TORCH_SUFFIXES:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}, which says nothing of how to read it; allowed "
            f"are .safetensors, {', '.join(_TORCH_SUFFIXES)}"
        )
    tensors = read_torch_file(path)
    if not isinstance(tensors, Mapping):
        raise ValueError(
            f"{path} holds a {type(tensors).__name__}, not a state dict; save that of the model, "
            "torch.save(model.state_dict(), …)"
        )
    for wrapper in (*(_EMA_WRAPPERS if ema else ()), *WRAPPERS):
        if isinstance(tensors.get(wrapper), Mapping):
            return tensors[wrapper]
    return tensors


def _read_safetensors(
    path: Path, metadata_only: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            keys = [] if metadata_only else file.keys()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Download or copy it again") from error


def _to_variables(name: str, tensors: _Tensors, options: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the model with the classes that the tensors have, checked."""
    if not any("/" in key for key in tensors):
        return from_torch(name, tensors, num_classes=count_classes(name, tensors), **options)
    kernel = tensors.get("/".join(CLASSIFIER))
    variables = unflatten_dict(dict(tensors), sep="/")
    num_classes = 0 if kernel is None else kernel.shape[-1]
    check_variables(name, variables, num_classes=num_classes, **options)
    return variables


def _fresh_classifier(model: Classifier, name: str, seed: int) -> dict[tuple[str, ...], Any]:
    """The last layer as `model.init` makes it, by path."""
    size = find_variant(name)[1].image_size

    @jax.jit  # which leaves out all that the last layer's parameters do not need
    def init(key):
        variables = flatten_dict(model.init(key, jnp.zeros((1, size, size, model.in_chans))))
        return {path[-1]: leaf for path, leaf in variables.items() if path[:-1] == CLASSIFIER[:-1]}

    fresh = jax.device_get(init(jax.random.key(seed)))
    return {(*CLASSIFIER[:-1], leaf): value for leaf, value in fresh.items()}
