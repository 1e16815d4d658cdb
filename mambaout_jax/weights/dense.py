# SPDX-License-Identifier: Apache-2.0
"""Loads detectors and segmenters: whole, or on the backbone of any weights.

Sources are those of `weights.load`. Weights of a classifier give a backbone, and so do those of a
detector or a segmenter, trained here or saved by mmdet or mmseg, whose tensors of the backbone are
called "backbone.…".
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mambaout_jax.backbone import Backbone
from mambaout_jax.layers.positions import height_and_width
from mambaout_jax.models import create_backbone, find_variant
from mambaout_jax.models.dense import DETECTOR_OPTIONS, SEGMENTER_OPTIONS
from mambaout_jax.models.registry import head_options
from mambaout_jax.weights.convert import (
    POSITIONS,
    Target,
    backbone_from_torch,
    model_variables,
    namings,
    read_state,
    torch_buffers,
    widen,
    write_state,
)
from mambaout_jax.weights.files import listed
from mambaout_jax.weights.locate import locate
from mambaout_jax.weights.mismatch import check_floating, check_names
from mambaout_jax.weights.state_dicts import without_prefixes
from mambaout_jax.weights.tensors import (
    Tensors,
    fit_positions,
    named_in_torch,
    tensors_of,
    trained_image_size,
)
from mambaout_jax.weights.torch_names import Path as ParameterPath
from mambaout_jax.weights.torch_names import Rules

_LOG = logging.getLogger("mambaout_jax")

_SIDE = 64  # pixels: parameters have the same shapes for all images
# Of the last layers, the axis of the classes: what tells how many there are.
_CLASSES = {
    "params/mask_head/predictor/kernel": -1,
    "params/auxiliary/classifier/kernel": -1,
    "roi_head.mask_head.conv_logits.weight": 0,
    "decode_head.conv_seg.weight": 0,
}
# What code with mmdet and mmseg calls the norm of each map, a part of the backbone there.
_MAP_NORMS = ("norm", "outnorm", "out_norm")

_HEADS = {"num_classes", *DETECTOR_OPTIONS, *SEGMENTER_OPTIONS}

_Flat = dict[ParameterPath, np.ndarray]


def load_dense(
    create: Callable[..., nn.Module],
    source: str | Path,
    name: str | None = None,
    *,
    num_classes: int | None = None,
    reset_head: bool = False,
    torch_names: Rules = (),
    ema: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A detector or segmenter and its variables.

    Args:
        create: `create_detector` or `create_segmenter`.
        source, name: see `weights.load.load_pretrained`.
        num_classes: None for that of the weights, or where they have none the default of `create`.
        reset_head: take the backbone alone, of which no tensor may be missing, and initialise all
            else; a line of the log tells what was taken and what was left out.
        torch_names: rules for what is put on the backbone, in PyTorch's files of whole models.
        ema: take the averaged weights where the source keeps them beside the raw ones.
        seed: seed of what is initialised.
        **options: those of `create`; `image_size` is by default that of the position table.

    Returns:
        The model, and a nested dict of numpy arrays, float32 or wider from PyTorch's files.

    Raises:
        FileNotFoundError, RuntimeError: as `load_pretrained`.
        ValueError: so, too; or the weights are not those of such a model, or of other classes.
    """
    found = locate(source, name)
    known = _of_backbone(found.name, found.options) if reset_head else found.options
    options = {**known, **options}
    tensors = tensors_of(source, found.fetch(), ema)
    trained = known.get("image_size") or _trained_size(found.name, tensors, options)
    image_size = options.pop("image_size", None) or trained
    classes = _count_classes(tensors)
    if not reset_head and (classes is None or num_classes not in (None, classes)):
        raise ValueError(_other_outputs(source, classes, num_classes))
    if (count := classes if num_classes is None else num_classes) is not None:
        options["num_classes"] = count
    model = create(found.name, image_size=image_size, **options)
    options["image_size"] = trained
    try:
        if reset_head:
            flat, left_out = _backbone(found.name, tensors, options)
        else:
            whole = create(found.name, **options)
            flat, left_out = _whole(found.name, whole, tensors, torch_names), []
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if POSITIONS in flat:
        grid = create_backbone(found.name, **_of_backbone(found.name, options)).grid
        flat[POSITIONS] = fit_positions(source, _backbone_of(model), flat[POSITIONS], grid)
    if reset_head:
        flat |= _told(source, flat, _fresh(model, seed), left_out)
    return model, unflatten_dict(flat)


def _told(source: str | Path, taken: _Flat, fresh: _Flat, left_out: list[str]) -> _Flat:
    """What is fresh, of which a line of the log tells."""
    _LOG.warning(
        "%s: took the backbone, %d tensors; initialised afresh: %s; left out: %s",
        source, len(taken), ", ".join(sorted({path[1] for path in fresh})),
        listed(left_out) or "nothing",
    )  # fmt: skip
    return fresh


def dense_to_torch(
    create: Callable[..., nn.Module],
    name: str,
    variables: Mapping[str, Any],
    naming: str,
    *,
    torch_names: Rules,
    **options: Any,
) -> dict[str, np.ndarray]:
    """State dict, as mmdet or mmseg would save it, of a detector or segmenter, bit for bit.

    Args:
        create: `create_detector` or `create_segmenter`.
        name: one of `list_models()`.
        variables: those of `create(name, **options)`.
        naming: a key of `dense_namings`, such as "official, outnorm".
        torch_names: rules for what is put on the backbone.
        **options: those of `create`.

    Raises:
        ValueError: there is no such naming, or the variables are not those of the model.
    """
    return write_state(_target(name, create(name, **options), torch_names), variables, naming)


def dense_namings(name: str, torch_names: Rules) -> dict[str, Rules]:
    """PyTorch's names of a whole model, in all namings of its backbone.

    Args:
        name: one of `list_models()`.
        torch_names: rules for what is put on the backbone.
    """
    return {
        f"{naming}, {norm}": (
            *torch_names,
            (r"neck/norm_(\d)", rf"backbone.{norm}\1"),
            *((pattern, f"backbone.{key}", *layout) for pattern, key, *layout in rules),
        )
        for naming, rules in namings(name).items()
        for norm in _MAP_NORMS
    }


def _backbone(name: str, tensors: Tensors, options: Mapping[str, Any]) -> tuple[_Flat, list[str]]:
    """The backbone's variables, and the names of what was left out."""
    options = _of_backbone(name, options)
    if named_in_torch(tensors):
        return backbone_from_torch(name, tensors, **options)
    backbone = create_backbone(name, **options)
    size = options["image_size"] or find_variant(name)[1].image_size
    shapes = flatten_dict(model_variables(backbone, size))
    wanted = {"/".join((c, "backbone", *path)): leaf.shape for (c, *path), leaf in shapes.items()}
    inside = {key: x for key, x in tensors.items() if key.split("/")[1:2] == ["backbone"]}
    _check(f"the backbone of {name}", wanted, inside)
    others = [key for key in tensors if key not in inside]
    return {tuple(key.split("/")): np.asarray(x) for key, x in inside.items()}, others


def _whole(name: str, model: nn.Module, tensors: Tensors, torch_names: Rules) -> _Flat:
    """The variables of a whole model."""
    if not named_in_torch(tensors):
        shapes = flatten_dict(_shapes(model))
        wanted = {"/".join(path): leaf.shape for path, leaf in shapes.items()}
        _check(name, wanted, tensors)
        return {tuple(key.split("/")): np.asarray(x) for key, x in tensors.items()}
    target = _target(name, model, torch_names)
    read: dict[ParameterPath, Any] = flatten_dict(read_state(target, tensors))
    return {path: widen(leaf) for path, leaf in read.items()}


def _target(name: str, model: nn.Module, torch_names: Rules) -> Target:
    backbone: Backbone = _backbone_of(model)

    def buffers(naming: str) -> dict[str, np.ndarray]:
        tables = _tables(name, backbone, naming.partition(",")[0])
        return {f"backbone.{key}": table for key, table in tables.items()}

    shapes = flatten_dict(_shapes(model))
    return Target(name, shapes, dense_namings(name, torch_names), buffers)


def _tables(name: str, backbone: Backbone, naming: str) -> dict[str, np.ndarray]:
    """The derived tables of a backbone that are the same for images of all sizes.

    Those of one size, such as Swin's masks, are no part of detectors and segmenters.
    """
    tables = torch_buffers(name, backbone, naming)
    if not tables or "image_size" not in backbone.__dataclass_fields__:
        return tables
    height, width = height_and_width(backbone.image_size)
    others = torch_buffers(name, backbone.clone(image_size=(2 * height, 2 * width)), naming)
    return {key: x for key, x in tables.items() if key in others and np.array_equal(x, others[key])}


def _check(name: str, wanted: Mapping[str, tuple[int, ...]], tensors: Tensors) -> None:
    found = {key: tuple(np.shape(value)) for key, value in tensors.items()}
    check_names(name, "this project's", wanted, found)
    check_floating(name, tensors)


def _shapes(model: nn.Module) -> Any:
    """Shapes and dtypes of a model's variables."""
    shape = (1, _SIDE, _SIDE, _backbone_of(model).in_chans)
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def _fresh(model: nn.Module, seed: int) -> _Flat:
    """All but the backbone as `model.init` makes it, by path."""
    image = jnp.zeros((1, _SIDE, _SIDE, _backbone_of(model).in_chans))

    @jax.jit  # which leaves out all that these parameters do not need
    def init(key):
        variables = flatten_dict(model.init(key, image), sep="/")
        return {path: leaf for path, leaf in variables.items() if path.split("/")[1] != "backbone"}

    fresh = jax.device_get(init(jax.random.key(seed)))
    return {tuple(path.split("/")): leaf for path, leaf in fresh.items()}


def _trained_size(
    name: str, tensors: Tensors, options: Mapping[str, Any]
) -> int | tuple[int, int] | None:
    """`trained_image_size`, also of a backbone inside of another model of PyTorch."""
    if named_in_torch(tensors):
        bare = without_prefixes(tensors)[0]
        tensors = {**bare, **{key.removeprefix("backbone."): x for key, x in bare.items()}}
    return trained_image_size(name, tensors, _of_backbone(name, options))


def _count_classes(tensors: Tensors) -> int | None:
    """How many classes a whole model has; None where the tensors are of no such model."""
    for key, axis in _CLASSES.items():
        if key in tensors:
            return int(np.shape(tensors[key])[axis])
    return None


def _other_outputs(source: str | Path, classes: int | None, wanted: int | None) -> str:
    if classes is None:
        return (
            f"{source} holds no detector or segmenter; to train one on its backbone set "
            "--config.model.reset_head=True"
        )
    return (
        f"the data have {wanted} classes and {source} has {classes}; evaluate weights that were "
        "trained on these classes, or train new heads on their backbone with "
        "--config.model.reset_head=True"
    )


def _of_backbone(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model without those of its head."""
    options = {key: value for key, value in options.items() if key not in _HEADS}
    unread = head_options(name, options)
    return {key: value for key, value in options.items() if key not in unread}


def _backbone_of(model: Any) -> Any:
    return model.backbone
