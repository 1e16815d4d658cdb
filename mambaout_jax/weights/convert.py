# SPDX-License-Identifier: Apache-2.0
"""Converts weights between PyTorch state dicts and this project's variables, both ways.

A family's `TORCH_NAMES` gives module names; this file knows how leaves are called and laid out:

    kernel (I, O)            weight (O, I)            linear
    kernel (K, K, I, O)      weight (O, I, K, K)      convolution; depthwise has I = 1
    scale, bias, gamma       weight, bias, gamma      norms, layer scale

Any other leaf, such as a class token, belongs to no layer: `TORCH_NAMES` names it whole, and it is
laid out alike.

Nothing is skipped and nothing is filled in: a name too many, a name too few or a shape that differs
is an error that lists all of them. PyTorch itself is not needed.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.backbone import Classifier
from mambaout_jax.layers.linear import height_and_width
from mambaout_jax.models import create_model, find_variant

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gamma": "gamma"}
CLASSIFIER = ("params", "head", "classifier", "kernel")  # where a head has one, by convention
POSITIONS = ("params", "backbone", "pos_embed")  # where a backbone has such a table, by convention
WRAPPERS = ("model", "state_dict", "state_dict_ema")  # what checkpoints call a state dict
_SHOWN = 8


class _Entry(NamedTuple):
    path: tuple[str, ...]  # in the variables, collection first
    shape: tuple[int, ...]  # there
    torch_shape: tuple[int, ...]


def from_torch(name: str, state_dict: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Variables of `create_model(name, **options)` from a PyTorch state dict.

    Args:
        name: one of `list_models()`.
        state_dict: names to arrays or CPU tensors, in any naming that the family knows (told apart
            by the names); also a checkpoint that holds it under "model" or "state_dict".
        **options: of `create_model`.

    Returns:
        Nested dict of numpy arrays, float32 or wider, equal bit for bit.

    Raises:
        ValueError: names or shapes do not fit; the message lists them.
    """
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
            break
    shapes = _shapes(name, options)
    naming = _detect_naming(name, state_dict, shapes)
    entries = _entries(name, naming, shapes)
    wanted = {key: entry.torch_shape for key, entry in entries.items()}
    given = {key: tuple(np.shape(value)) for key, value in state_dict.items()}
    _check(name, naming, wanted, given)
    flat = {
        entry.path: _from_torch_layout(_to_numpy(state_dict[key]), entry.path[-1])
        for key, entry in entries.items()
    }
    return flax.traverse_util.unflatten_dict(flat)


def to_torch(
    name: str, variables: Mapping[str, Any], naming: str = "timm", **options: Any
) -> dict[str, np.ndarray]:
    """PyTorch state dict of a model's variables, equal bit for bit.

    Args:
        name: one of `list_models()`.
        variables: of `create_model(name, **options)`.
        naming: a key of the family's `TORCH_NAMES`.
        **options: of `create_model`.

    Raises:
        ValueError: the family has no such naming, or the variables are not those of the model.
    """
    entries = _entries(name, naming, _shapes(name, options))
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(dict(variables))
    wanted = {"/".join(entry.path): entry.shape for entry in entries.values()}
    given = {"/".join(path): tuple(np.shape(value)) for path, value in flat.items()}
    _check(name, "this project's", wanted, given)
    return {
        key: _to_torch_layout(np.asarray(flat[entry.path]), entry.path[-1])
        for key, entry in entries.items()
    }


def check_variables(name: str, variables: Mapping[str, Any], **options: Any) -> None:
    """Raises ValueError unless names and shapes are those of `create_model(name, **options)`."""
    wanted = {"/".join(path): leaf.shape for path, leaf in _shapes(name, options).items()}
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    given = {path: tuple(np.shape(value)) for path, value in flat.items()}
    _check(name, "this project's", wanted, given)


def count_classes(name: str, state_dict: Mapping[str, Any]) -> int:
    """Classes of a PyTorch state dict's classifier, 0 where it has none.

    Args:
        name: one of `list_models()`.
        state_dict: names to arrays, in any naming that the family knows.
    """
    shape = _torch_shape(name, state_dict, CLASSIFIER)
    return shape[0] if shape else 0


def count_positions(name: str, state_dict: Mapping[str, Any]) -> int:
    """Tokens of a PyTorch state dict's position table, 0 where it has none.

    Args:
        name, state_dict: as in `count_classes`.
    """
    shape = _torch_shape(name, state_dict, POSITIONS)
    return shape[-2] if len(shape) > 1 else 0


def model_variables(model: Classifier, image_size: int | tuple[int, int]) -> Any:
    """Shapes and dtypes of a model's variables, without computing any.

    Args:
        image_size: side or (height, width) in pixels.
    """
    shape = (1, *height_and_width(image_size), model.in_chans)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def _shapes(name: str, options: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Shapes and dtypes of a model's variables, by path."""
    _, variant = find_variant(name)
    image_size = options.get("image_size") or variant.image_size
    variables = model_variables(create_model(name, **options), image_size)
    return flax.traverse_util.flatten_dict(variables)


def _entries(name: str, naming: str, shapes: Mapping[tuple[str, ...], Any]) -> dict[str, _Entry]:
    """The torch names of a model's variables."""
    family = _named_family(name)
    if naming not in family.TORCH_NAMES:
        raise ValueError(
            f"naming={naming!r} is not known for {name}; allowed are {sorted(family.TORCH_NAMES)}"
        )
    entries = {}
    for path, leaf in shapes.items():
        key = _torch_name(path, family.TORCH_NAMES[naming])
        if key is None:
            raise ValueError(
                f"{name} has a parameter that the {naming} naming has no name for: "
                f"{'/'.join(path)}; choose another naming of {sorted(family.TORCH_NAMES)}"
            )
        torch_shape = _to_torch_layout(np.empty(leaf.shape, np.bool_), path[-1]).shape
        entries[key] = _Entry(path, leaf.shape, torch_shape)
    return entries


def _torch_name(path: tuple[str, ...], rules: tuple[tuple[str, str], ...]) -> str | None:
    leaf = _LEAF_NAMES.get(path[-1])
    named = "/".join(path[1:-1] if leaf else path[1:])
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, named):
            name = match.expand(replacement)
            return f"{name}.{leaf}" if leaf else name
    return None


def _torch_shape(
    name: str, state_dict: Mapping[str, Any], path: tuple[str, ...]
) -> tuple[int, ...]:
    """Shape of one parameter in a state dict of any naming, () where it is not there."""
    family, _ = find_variant(name)
    for rules in family.TORCH_NAMES.values():
        key = _torch_name(path, rules)
        if key is not None and key in state_dict:
            return np.shape(state_dict[key])
    return ()


def _detect_naming(
    name: str, state_dict: Mapping[str, Any], shapes: Mapping[tuple[str, ...], Any]
) -> str:
    """The naming that shares most names with the state dict."""
    family = _named_family(name)
    return max(
        family.TORCH_NAMES,
        key=lambda naming: sum(
            _torch_name(path, family.TORCH_NAMES[naming]) in state_dict for path in shapes
        ),
    )


def _named_family(name: str) -> ModuleType:
    """The family of a model, which has to have names in PyTorch."""
    family, _ = find_variant(name)
    if not family.TORCH_NAMES:
        raise ValueError(
            f"{name} has no PyTorch names: no PyTorch version of it is published; save its "
            "variables under our own, `weights.load.save_variables`"
        )
    return family


def _to_torch_layout(value: np.ndarray, leaf: str) -> np.ndarray:
    if leaf == "kernel":
        value = np.transpose(value, (1, 0) if value.ndim == 2 else (3, 2, 0, 1))
    return np.ascontiguousarray(value)


def _from_torch_layout(value: np.ndarray, leaf: str) -> np.ndarray:
    if leaf == "kernel":
        value = np.transpose(value, (1, 0) if value.ndim == 2 else (2, 3, 1, 0))
    return np.ascontiguousarray(value)


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor; numpy has no bfloat16, and widening it is exact
        value = value.detach()
        value = (value.float() if value.dtype.itemsize < 4 else value).numpy()
    value = np.asarray(value)
    return value.astype(np.promote_types(value.dtype, np.float32), copy=False)


def _check(
    name: str,
    naming: str,
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    wrong = [
        f"{key} (the model has {wanted[key]}, the weights have {given[key]})"
        for key in wanted
        if key in given and wanted[key] != given[key]
    ]
    if not (missing or unexpected or wrong):
        return
    lines = [f"these weights are not those of {name} in {naming} naming"]
    for title, keys in (
        ("missing, the model has them and the weights do not", missing),
        ("unexpected, the weights have them and the model does not", unexpected),
        ("wrong shape", wrong),
    ):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            lines.append(f"  {title} ({len(keys)}): {', '.join(keys[:_SHOWN])}{more}")
    lines.append("check the model's name, num_classes, in_chans and options")
    raise ValueError("\n".join(lines))
