# SPDX-License-Identifier: Apache-2.0
"""Converts weights between PyTorch state dicts and this project's variables, both ways.

`torch_names` says how a family's `TORCH_NAMES` are read.

A family may also have `torch_buffers(backbone, naming)`: tables that PyTorch's model derives from
its sizes and saves, such as Swin's indices. They are compared when read, and written where the
naming has them. A BatchNorm's `num_batches_tracked` is ignored when read, and written as 0.

Nothing is skipped and nothing is filled in: a name too many, a name too few or a shape that differs
is an error that lists all of them. PyTorch itself is not needed.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.backbone import Backbone, Classifier
from mambaout_jax.layers.positions import height_and_width
from mambaout_jax.models import create_model, find_variant
from mambaout_jax.weights.files import listed
from mambaout_jax.weights.mismatch import check_floating, check_names
from mambaout_jax.weights.state_dicts import find_state_dict, without_prefixes
from mambaout_jax.weights.torch_names import Path, Rules, Tensor, torch_name, torch_tensors

CLASSIFIER = ("params", "head", "classifier", "kernel")  # where a head has one, by convention
POSITIONS = ("params", "backbone", "pos_embed")  # where a backbone has such a table, by convention

_BACKBONE = "backbone."  # before the backbone's names in detectors and segmenters of PyTorch
_MAP_NORM = r"(out_?)?norm_?\d+\.(weight|bias)"  # of a map there: norm0, outnorm0, out_norm0


class Target(NamedTuple):
    """The model whose weights are converted.

    Attributes:
        name: for messages.
        shapes: shapes and dtypes of its variables, by path.
        namings: PyTorch's names for them, by naming.
        buffers: naming to the tables that PyTorch's model derives from its sizes.
    """

    name: str
    shapes: Mapping[Path, Any]
    namings: Mapping[str, Rules]
    buffers: Callable[[str], Mapping[str, np.ndarray]]


def from_torch(name: str, state_dict: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Variables of `create_model(name, **options)` from a PyTorch state dict.

    Args:
        name: one of `list_models()`.
        state_dict: names to arrays or CPU tensors, in any naming that the family knows (told apart
            by the names); also a checkpoint that holds it, see `weights.state_dicts`.
        **options: options of `create_model`.

    Returns:
        Nested dict of numpy arrays, float32 or wider, equal bit for bit; they share no memory with
        the state dict.

    Raises:
        ValueError: names, shapes, dtypes or derived tables do not fit; the message lists them.
    """
    return jax.tree.map(widen, from_torch_as_saved(name, state_dict, **options))


def from_torch_as_saved(name: str, state_dict: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """As `from_torch`, but arrays (not tensors of PyTorch) keep their dtypes, such as bfloat16."""
    return read_state(_target(name, options), state_dict)


def backbone_from_torch(
    name: str, state_dict: Mapping[str, Any], **options: Any
) -> tuple[dict[Path, np.ndarray], list[str]]:
    """The backbone alone, of a classifier's state dict or of a detector's or segmenter's.

    The latter, as mmdet and mmseg save them, call it "backbone." and may have a norm there for each
    map that is read, which is no part of the backbone here.

    Args:
        name, state_dict, options: see `from_torch`.

    Returns:
        Variables by path, float32 or wider; and the names of all tensors that were left out.

    Raises:
        ValueError: as `from_torch`: a tensor of the backbone is missing or has another shape, or
            one is there that is neither the backbone's nor a head's.
    """
    target = _target(name, {**options, "num_classes": 1})
    inside = [path for path in target.shapes if path[1] == "backbone"]
    forms = without_prefixes(find_state_dict(state_dict, ema=False))
    parts = [part for form in forms if (part := _below(_BACKBONE, form))]
    state, naming = _detect_naming(target.namings, [*forms, *parts], inside)
    known = _tensors(target, naming)
    tensors = {key: tensor for key, tensor in known.items() if tensor.paths[0] in inside}
    derived = _derived(target, naming, known)
    _compare_derived(name, derived, state)
    others = [key for key in state if key not in tensors and key not in derived]
    left_out = others
    if any(state is part for part in parts):
        left_out = [key for key in forms[0] if key.removeprefix(_BACKBONE) not in tensors]
        strange = [key for key in others if not re.fullmatch(_MAP_NORM, key)]
    else:
        strange = [key for key in others if key not in known]
    wanted = {key: tensor.torch_shape for key, tensor in tensors.items()}
    found = {
        key: tuple(np.shape(x)) for key, x in state.items() if key in tensors or key in strange
    }
    check_names(f"the backbone of {name}", naming, wanted, found)
    flat = {path: widen(leaf) for path, leaf in _parts(name, tensors, state).items()}
    return flat, left_out


def _parts(
    name: str, tensors: Mapping[str, Tensor], state_dict: Mapping[str, Any]
) -> dict[Path, np.ndarray]:
    """The parameters that tensors are made of, by path."""
    arrays = {key: _to_numpy(state_dict[key]) for key in tensors}
    check_floating(name, arrays)
    return {
        path: part
        for key, tensor in tensors.items()
        for path, part in zip(tensor.paths, tensor.from_torch(arrays[key]), strict=True)
    }


def _below(prefix: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What is called so, without the prefix; nothing where all is called so, or none is."""
    inside = {key.removeprefix(prefix): x for key, x in names.items() if key.startswith(prefix)}
    return inside if len(inside) < len(names) else {}


def to_torch(
    name: str, variables: Mapping[str, Any], naming: str = "timm", **options: Any
) -> dict[str, np.ndarray]:
    """PyTorch state dict of a model's variables, equal bit for bit.

    Args:
        name: one of `list_models()`.
        variables: variables of `create_model(name, **options)`.
        naming: a key of the family's `TORCH_NAMES`.
        **options: options of `create_model`.

    Returns:
        Names to numpy arrays, which share no memory with the variables.

    Raises:
        ValueError: the family has no such naming, or the variables are not those of the model, in
            names, shapes or dtypes.
    """
    return write_state(_target(name, options), variables, naming)


def read_state(target: Target, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables from a PyTorch state dict, as `from_torch_as_saved`.

    Raises:
        ValueError: names, shapes, dtypes or derived tables do not fit; the message lists them.
    """
    name = target.name
    forms = without_prefixes(find_state_dict(state_dict, ema=False))
    state_dict, naming = _detect_naming(target.namings, forms, target.shapes)
    tensors = _tensors(target, naming)
    derived = _derived(target, naming, tensors)
    for other in target.namings:  # older files of one may hold tables that it no longer has
        derived = {**target.buffers(other), **derived}
    _compare_derived(name, derived, state_dict)
    wanted = {key: tensor.torch_shape for key, tensor in tensors.items()}
    found = {key: tuple(np.shape(x)) for key, x in state_dict.items() if key not in derived}
    check_names(name, naming, wanted, found)
    return flax.traverse_util.unflatten_dict(_parts(name, tensors, state_dict))


def write_state(target: Target, variables: Mapping[str, Any], naming: str) -> dict[str, np.ndarray]:
    """PyTorch state dict of variables, as `to_torch`.

    Raises:
        ValueError: there is no such naming, or the variables are not those of the model.
    """
    tensors = _tensors(target, naming)
    flat: dict[Path, Any] = flax.traverse_util.flatten_dict(dict(variables))
    _check_paths(target.name, target.shapes, flat)
    state = {
        key: tensor.to_torch([np.asarray(flat[path]) for path in tensor.paths])
        for key, tensor in tensors.items()
    }
    return {**state, **_derived(target, naming, tensors)}


def check_variables(name: str, variables: Mapping[str, Any], **options: Any) -> None:
    """Raises ValueError unless names and shapes are those of `create_model(name, **options)`.

    Also where an array is not floating: parameters and statistics of all models are.
    """
    shapes = _shapes(name, create_model(name, **options), options)
    _check_paths(name, shapes, flax.traverse_util.flatten_dict(dict(variables)))


def torch_shape(name: str, state_dict: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Shape of one parameter in a state dict of any naming, () where it is not there.

    Args:
        name: one of `list_models()`.
        state_dict: names to arrays, in any naming that the family knows.
        path: path of the parameter, such as `CLASSIFIER`.
    """
    for naming in namings(name):
        named = torch_name(path, namings(name)[naming])
        if named is not None and named[0] in state_dict:
            return tuple(np.shape(state_dict[named[0]]))
    return ()


def unwrap(name: str, state_dict: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """A state dict under the model's names, without those of the wrappers around the model.

    Args:
        name: one of `list_models()`.
        state_dict: names to arrays.
        **options: options of `create_model`.
    """
    forms = without_prefixes(state_dict)
    if len(forms) == 1:
        return forms[0]
    shapes = _shapes(name, create_model(name, **options), options)
    return _detect_naming(namings(name), forms, shapes)[0]


def model_variables(model: Classifier | Backbone, image_size: int | tuple[int, int]) -> Any:
    """Shapes and dtypes of the variables of a classifier or backbone, without computing any.

    Args:
        image_size: side or (height, width) in pixels.
    """
    size = height_and_width(image_size)
    try:
        hash(model)
    except TypeError:  # an option is a list, which could change
        return _trace_variables(model, size)
    return jax.tree.map(lambda leaf: leaf, _known_variables(model, size))  # the caller's own dicts


def _trace_variables(model: Classifier | Backbone, size: tuple[int, int]) -> Any:
    backbone = model if isinstance(model, Backbone) else model.backbone
    image = jax.ShapeDtypeStruct((1, *size, backbone.in_chans), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


# A trace takes about a second, and one conversion asks for the same shapes several times.
_known_variables: Callable[..., Any] = functools.lru_cache(maxsize=64)(_trace_variables)


def _shapes(name: str, model: Classifier, options: Mapping[str, Any]) -> dict[Path, Any]:
    """Shapes and dtypes of a model's variables, by path."""
    _, variant = find_variant(name)
    image_size = options.get("image_size") or variant.image_size
    return flax.traverse_util.flatten_dict(model_variables(model, image_size))


def _target(name: str, options: Mapping[str, Any]) -> Target:
    """The classifier `create_model(name, **options)`."""
    model = create_model(name, **options)
    tables = functools.partial(torch_buffers, name, model.backbone)
    return Target(name, _shapes(name, model, options), namings(name), tables)


def _tensors(target: Target, naming: str) -> dict[str, Tensor]:
    known = sorted(target.namings)
    if naming not in target.namings:
        raise ValueError(f"naming={naming!r} is not known for {target.name}; allowed are {known}")
    try:
        return torch_tensors(target.namings[naming], target.shapes)
    except ValueError as error:
        raise ValueError(
            f"{target.name} cannot be named in the {naming} naming: {error}; choose another naming "
            f"of {known}"
        ) from error


def namings(name: str) -> Mapping[str, Rules]:
    """The namings of a model's family, which has to have some."""
    family, variant = find_variant(name)
    if not family.TORCH_NAMES:
        raise ValueError(
            f"{name} has no PyTorch names: no PyTorch version of it is published; save its "
            "variables under our own, `weights.load.save_variables`"
        )
    by_size: Any = family.TORCH_NAMES
    return by_size(variant) if isinstance(by_size, FunctionType) else by_size


def _detect_naming(
    namings: Mapping[str, Rules], forms: Sequence[dict[str, Any]], shapes: Iterable[Path]
) -> tuple[dict[str, Any], str]:
    """The form of a state dict and the naming that share most names."""
    named = {
        naming: [tensor[0] for path in shapes if (tensor := torch_name(path, rules)) is not None]
        for naming, rules in namings.items()
    }
    pairs = ((form, naming) for form in forms for naming in named)
    return max(pairs, key=lambda pair: sum(key in pair[0] for key in named[pair[1]]))


def torch_buffers(name: str, backbone: Backbone, naming: str) -> dict[str, np.ndarray]:
    """The tables that PyTorch's model derives from its sizes."""
    family: ModuleType = find_variant(name)[0]
    derive = getattr(family, "torch_buffers", None)
    return {} if derive is None else derive(backbone, naming)


def _derived(target: Target, naming: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What a state dict holds beside learned and running tensors."""
    counters = (
        f"{key.removesuffix('running_mean')}num_batches_tracked"
        for key, tensor in tensors.items()
        if tensor.paths[0][0] == "batch_stats" and key.endswith("running_mean")
    )
    return {
        **target.buffers(naming),
        **{key: np.zeros((), np.int64) for key in counters},
    }


def _compare_derived(
    name: str, derived: Mapping[str, np.ndarray], state_dict: Mapping[str, Any]
) -> None:
    wrong = [
        key
        for key, value in derived.items()
        if key in state_dict
        and not key.endswith("num_batches_tracked")
        and not _same_table(value, _to_numpy(state_dict[key]))
    ]
    if wrong:
        raise ValueError(
            f"these tables of {name} follow from its sizes, and the weights have others: "
            f"{listed(wrong)}; check image_size and the options"
        )


def _same_table(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Up to the rounding of bfloat16."""
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-2, atol=1e-2)


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor; numpy has no bfloat16, and widening it is exact
        value = value.detach()
        narrow = value.dtype.is_floating_point and value.dtype.itemsize < 4
        value = (value.float() if narrow else value).numpy()
    return np.asarray(value)


def widen(value: np.ndarray) -> np.ndarray:
    """The array in at least float32, which changes no number."""
    return value.astype(np.promote_types(value.dtype, np.float32), copy=False)


def _check_paths(name: str, shapes: Mapping[Path, Any], flat: Mapping[Path, Any]) -> None:
    wanted = {"/".join(path): tuple(leaf.shape) for path, leaf in shapes.items()}
    found = {"/".join(path): tuple(np.shape(value)) for path, value in flat.items()}
    check_names(name, "this project's", wanted, found)
    check_floating(name, {"/".join(path): value for path, value in flat.items()})
