# SPDX-License-Identifier: Apache-2.0
"""What a family's `TORCH_NAMES` say: PyTorch's name of every parameter, and its layout there.

`TORCH_NAMES` holds, for each naming, rules `(pattern, name)` or `(pattern, name,
layout)`; the first whose pattern matches decides. A pattern matches the whole path of a parameter,
such as "backbone/pos_embed", or that of its layer, "backbone/stem/conv1", whose leaves are then
named as PyTorch's layers name them:

    kernel, scale     weight         bias      bias          gamma     gamma
    mean              running_mean   var       running_var   (of a BatchNorm's statistics)

A kernel is laid out by its rank, everything else as it is, unless the rule has a layout:

    "linear"          (I, O)         → (O, I)             a kernel of rank 2
    "conv"            (K, K, I, O)   → (O, I, K, K)       of rank 4; depthwise has I = 1
    "conv1d"          (K, I, O)      → (O, I, K)          of rank 3
    "pointwise"       (I, O)         → (O, I, 1, 1)       a linear layer that is a 1x1 convolution
    "transposed"      (K, K, I, O)    → (I, O, K, K)      of a transposed convolution
    "region"          (49 · C, O)     → (O, C · 49)       a linear layer over the pixels of a map of
                                                          7 x 7, channels last here and first there
    "filter"          (H, W, 2, C)    → (C, H, W, 2)      real and imaginary parts of a filter
    "map"             (C,)            → (1, C, 1, 1)      of any leaf: one number for each channel
    "unchanged"       as it is                            a kernel laid out there as here
    "stacked"         P parameters of one name become one, on a new first axis, in order of their
                      paths; each is laid out by its rank
    "concatenated"    likewise, joined along their first axis
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Path = tuple[str, ...]  # of a parameter in the variables, collection first
Rules = Sequence[tuple[str, ...]]

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "gamma": "gamma",
    "mean": "running_mean",
    "var": "running_var",
}


_REGION = 7 * 7  # pixels that a detector's box head reads


class _Layout(NamedTuple):
    """How one array is laid out in PyTorch."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


def _transposition(axes: tuple[int, ...]) -> _Layout:
    back = tuple(int(axis) for axis in np.argsort(axes))
    return _Layout(lambda x: x.transpose(axes), lambda x: x.transpose(back))


_AS_IT_IS = _Layout(lambda x: x, lambda x: x)
_LAYOUTS = {
    "linear": _transposition((1, 0)),
    "conv": _transposition((3, 2, 0, 1)),
    "conv1d": _transposition((2, 1, 0)),
    "unchanged": _AS_IT_IS,
    "pointwise": _Layout(lambda x: x.T[:, :, None, None], lambda x: x[:, :, 0, 0].T),
    "transposed": _transposition((2, 3, 0, 1)),
    "region": _Layout(
        lambda x: x.reshape(_REGION, -1, x.shape[1]).transpose(2, 1, 0).reshape(x.shape[::-1]),
        lambda x: x.reshape(len(x), -1, _REGION).transpose(2, 1, 0).reshape(x.shape[::-1]),
    ),
    "filter": _transposition((3, 0, 1, 2)),
}
_MAP = _Layout(lambda x: x[None, :, None, None], lambda x: x[0, :, 0, 0])
_JOINED = ("stacked", "concatenated")
_KERNELS_BY_RANK = {2: "linear", 3: "conv1d", 4: "conv"}


class Tensor(NamedTuple):
    """A PyTorch tensor and what it is made of.

    Attributes:
        paths: parameters here; several where they are stacked or concatenated.
        shapes: their shapes.
        layout: name of the rule's layout, None for the one that follows from the rank.
    """

    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    layout: str | None

    def to_torch(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor, a new array, from the values of its parameters."""
        laid_out = [
            layout.to_torch(part) for layout, part in zip(self._layouts(), parts, strict=True)
        ]
        if self.layout == "stacked":
            joined = np.stack(laid_out)
        elif self.layout == "concatenated":
            joined = np.concatenate(laid_out)
        else:
            joined = np.array(laid_out[0])
        return np.ascontiguousarray(joined)  # which files of safetensors take for granted

    def from_torch(self, value: np.ndarray) -> list[np.ndarray]:
        """The values of the parameters, new arrays, from the tensor."""
        if self.layout == "stacked":
            parts = list(value)
        elif self.layout == "concatenated":
            lengths = [self._torch_part(i)[0] for i in range(len(self.paths))]
            parts = np.split(value, np.cumsum(lengths)[:-1])
        else:
            parts = [value]
        return [
            np.array(layout.from_torch(part), order="C")
            for layout, part in zip(self._layouts(), parts, strict=True)
        ]

    def _torch_part(self, part: int) -> tuple[int, ...]:
        """Shape of one parameter as it is laid out in the tensor."""
        return self._layouts()[part].to_torch(np.empty(self.shapes[part], np.bool_)).shape

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.to_torch([np.empty(shape, np.bool_) for shape in self.shapes]).shape

    def _layouts(self) -> list[_Layout]:
        return [
            _layout(self.layout, path[-1], len(shape))
            for path, shape in zip(self.paths, self.shapes, strict=True)
        ]


def _layout(name: str | None, leaf: str, rank: int) -> _Layout:
    if name == "map":
        return _MAP
    if name in _LAYOUTS and leaf == "kernel":
        return _LAYOUTS[name]
    return _LAYOUTS[_KERNELS_BY_RANK[rank]] if leaf == "kernel" else _AS_IT_IS


def torch_tensors(rules: Rules, shapes: Mapping[Path, Any]) -> dict[str, Tensor]:
    """The tensors of a model in PyTorch, by name.

    Args:
        rules: the rules of one naming.
        shapes: arrays or their shapes and dtypes, by path.

    Raises:
        ValueError: a parameter that no rule names, or two that are called the same.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(shapes):
        named = torch_name(path, rules)
        if named is None:
            raise ValueError(f"no name for the parameter {'/'.join(path)}")
        key, layout = named
        if key in tensors and layout not in _JOINED:
            both = f"{'/'.join(path)} and {'/'.join(tensors[key].paths[0])}"
            raise ValueError(f"one name, {key}, for {both}")
        before = tensors.get(key, Tensor((), (), layout))
        shape = tuple(shapes[path].shape)
        tensors[key] = Tensor((*before.paths, path), (*before.shapes, shape), layout)
    return tensors


def torch_name(path: Path, rules: Rules) -> tuple[str, str | None] | None:
    """Name and layout of a parameter's tensor, None where no rule matches."""
    whole, layer = "/".join(path[1:]), "/".join(path[1:-1])
    for pattern, name, *layout in rules:
        chosen = layout[0] if layout else None
        if match := re.fullmatch(pattern, whole):
            return match.expand(name), chosen
        if path[-1] in _LEAF_NAMES and (match := re.fullmatch(pattern, layer)):
            return f"{match.expand(name)}.{_LEAF_NAMES[path[-1]]}", chosen
    return None
