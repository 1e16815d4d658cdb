# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of a model, from shapes alone: nothing is computed.

Multiply-accumulates are counted as in the literature:

- convolutions: one per kernel tap of every output, including taps that fall on padding;
- linear layers: one per weight and token;
- attention: one per channel and pair of tokens in each of its two matrix products, including masked
  pairs;
- norms, activations, softmax and pooling: none;
- selective scans: by one of two formulas that papers use, see `SCAN_FORMULAS`.

(XLA's own cost analysis leaves padded taps out and counts additions and multiplications separately,
so it does not give the published figures.)
"""

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.extend.core import Primitive, jaxprs_in_params
from jax.interpreters import batching

from mambaout_jax.mixers.ssm import ScanSize

_SHOWN = 4  # how many modules an error lists

# Multiply-accumulates of one scan over L tokens of D channels with N states.
#   parallel  the most widely used: 9·L·D·N for the recurrence and L·D for the skip; a gate adds L·D
#   hand      that of LocalMamba's and Vim's code: 5·L·D·N + 2·L·D; it counts the projections of the
#             first path and not those of further paths
SCAN_FORMULAS: dict[str, Callable[[int, int, int], int]] = {
    "parallel": lambda L, D, N: 9 * L * D * N + L * D,
    "hand": lambda L, D, N: 5 * L * D * N + 2 * L * D,
}


class Cost(NamedTuple):
    """Attributes:
    parameters: numbers in `params`, including frozen tables.
    macs: multiply-accumulates for one image.
    """

    parameters: int
    macs: int


def count(model: nn.Module, image_shape: tuple[int, ...], scan_formula: str = "parallel") -> Cost:
    """Counts the parameters of a model and its multiply-accumulates for one image.

    Args:
        model: any linen module whose input is images (1, H, W, C).
        image_shape: (H, W, C).
        scan_formula: a key of `SCAN_FORMULAS`.

    Raises:
        ValueError: `image_shape` is not (H, W, C), `scan_formula` is unknown, or a module has
            parameters but does not state its multiply-accumulates.
    """
    if scan_formula not in SCAN_FORMULAS:
        raise ValueError(
            f"scan_formula={scan_formula!r} is not known; allowed are {', '.join(SCAN_FORMULAS)}"
        )
    return count_by_formula(model, image_shape)[scan_formula]


def count_by_formula(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Cost]:
    """`count` by each of `SCAN_FORMULAS`, in the time of one.

    Args:
        model: any linen module whose input is images (1, H, W, C).
        image_shape: (H, W, C).

    Raises:
        ValueError: `image_shape` is not (H, W, C), or a module has parameters but does not state
            its multiply-accumulates.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={image_shape} must be (H, W, C), without a batch axis")
    counter = _Counter()
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(counter):
        program, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), image)
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables.get("params", {}))
    counter.check({path[:-1] for path in flat})
    parameters = sum(math.prod(leaf.shape) for leaf in flat.values())
    return {
        formula: Cost(parameters, _marked_macs(program.jaxpr, formula)) for formula in SCAN_FORMULAS
    }


def block_flops(L: int, D: int) -> int:
    """Operations of a transformer block, two per MAC: 24·D²·L + 4·D·L² (paper, Eq. 6).

    Args:
        L: tokens.
        D: channels.
    """
    return 24 * D * D * L + 4 * D * L * L


def length_ratio(L: int, D: int) -> float:
    """L / (6·D), from Eq. 6 of the paper.

    Above 1, attention costs more than everything that is linear in L, and the paper calls the
    sequence long. The threshold is 2,304 tokens at the width of ViT-S and 4,608 at that of ViT-B.

    Args:
        L: tokens.
        D: channels.
    """
    return L / (6 * D)


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...], batch_size: int) -> int:
    """Bytes that a forward pass in training mode keeps for the backward pass.

    These are the residuals as JAX traces them. XLA fuses some of them away and needs some space of
    its own, so that this is an upper estimate. Parameters are not counted.

    Args:
        model: any linen module whose input is images (B, H, W, C) and which takes `train=`.
        image_shape: (H, W, C).
        batch_size: images on one device.
    """
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key, images)

    def backward(params, rest, images, key):
        def forward(params):
            return model.apply(
                {**rest, "params": params},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=list(rest),
            )[0]

        residuals = {id(leaf): leaf for leaf in jax.tree.leaves(jax.vjp(forward, params)[1])}
        inputs = {id(leaf) for leaf in jax.tree.leaves(params)}
        return [leaf for name, leaf in residuals.items() if name not in inputs]

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    kept = jax.eval_shape(backward, variables["params"], rest, images, key)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


class _Counter:
    """Interceptor that marks in a traced program what its modules state to cost.

    The marks are equations of the program, so that a module inside `nn.scan` or `nn.vmap`, which is
    traced once, is counted as often as it runs.
    """

    def __init__(self) -> None:
        self._types: dict[tuple[str, ...], type[nn.Module]] = {}  # by path
        self._stated: set[tuple[str, ...]] = set()
        self._calls: Counter[tuple[str, ...]] = Counter()  # finished ones, by path

    def __call__(
        self,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module, method = context.module, context.method_name
        kind, before = type(module), self._calls[module.path]
        output = next_function(*args, **kwargs)
        self._types.setdefault(module.path, kind)
        macs = _stated_macs(kind)
        if macs is not None:
            self._stated.add(module.path)
        if method != "__call__" or self._calls[module.path] > before:
            return output  # of a lifted or derived class, whose own module has been counted inside
        self._calls[module.path] += 1
        bound = inspect.signature(next_function).bind(*args, **kwargs)
        inputs = (*bound.args, *filter(_is_array, bound.kwargs.values()))
        own = 0 if macs is None else macs(module, inputs, output)
        scan = module.scan_size(inputs) if hasattr(kind, "scan_size") else None
        totals = tuple(
            (formula, (0 if _is_free(module, formula) else int(own)) + _scan_macs(scan, formula))
            for formula in SCAN_FORMULAS
        )
        return _mark(output, totals) if any(total for _, total in totals) else output

    def check(self, owners: set[tuple[str, ...]]) -> None:
        """Raises ValueError if a module with parameters of its own does not state its cost."""
        unknown = sorted(owners - self._stated)
        if unknown:
            seen = {self._types[path].__name__ for path in unknown if path in self._types}
            kinds = seen or {"a module that nn.jit has traced before"}
            raise ValueError(
                f"nobody states the multiply-accumulates of {', '.join(sorted(kinds))}, whose "
                f"parameters are at {['/'.join(path) for path in unknown[:_SHOWN]]}; give the "
                "module a method macs(self, inputs, output) -> int, 0 where the literature counts "
                "none"
            )


def _scan_macs(scan: ScanSize | None, formula: str) -> int:
    """All paths of a scan, without the projections, which are linear layers inside it."""
    if scan is None:
        return 0
    L = scan.tokens
    D = scan.channels
    gate = L * D if scan.gated else 0
    return scan.paths * (SCAN_FORMULAS[formula](L, D, scan.states) + gate)


def _is_free(module: nn.Module, formula: str) -> bool:
    further_path = any(re.fullmatch(r"path_[1-9]\d*", name) for name in module.path)
    return formula == "hand" and further_path


# An identity that carries pairs of a formula and multiply-accumulates. Of a batch of `nn.vmap` each
# example has its own.
_marker = Primitive("macs")
_marker.def_abstract_eval(lambda x, *, macs: x)


def _mark_batch(inputs, axes, *, macs):
    batch = inputs[0].shape[axes[0]]
    macs = tuple((formula, count * batch) for formula, count in macs)
    return _marker.bind(inputs[0], macs=macs), axes[0]


batching.primitive_batchers[_marker] = _mark_batch


def _mark(output: Any, macs: tuple[tuple[str, int], ...]) -> Any:
    leaves, structure = jax.tree.flatten(output)
    return jax.tree.unflatten(structure, [_marker.bind(leaves[0], macs=macs), *leaves[1:]])


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _marked_macs(program: Any, formula: str) -> int:
    """What is marked in a jaxpr, all of its inner ones included, as often as they run."""
    macs = 0
    for equation in program.eqns:
        if equation.primitive is _marker:
            macs += dict(equation.params["macs"])[formula]
            continue
        inner = [_marked_macs(jaxpr, formula) for jaxpr in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "while" and any(inner):
            raise ValueError(
                "a module is called in a loop whose length is not known before it runs, so that "
                "its multiply-accumulates cannot be counted; use nn.scan"
            )
        if equation.primitive.name == "cond":
            macs += max(inner, default=0)
        else:
            macs += sum(inner) * equation.params.get("length", 1)
    return macs


def _stated_macs(kind: type[nn.Module]) -> Callable[..., int] | None:
    """The method `macs` of a class, or what is known of flax's classes and those made of them."""
    own = getattr(kind, "macs", None)
    return own or next((_FLAX_MACS[base] for base in kind.__mro__ if base in _FLAX_MACS), None)


def _conv_macs(module: nn.Conv | nn.ConvLocal, inputs: tuple[Any, ...], output: Any) -> int:
    kernel = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    return output.size * math.prod(kernel) * inputs[0].shape[-1] // module.feature_group_count


def _dense_macs(module: nn.Dense, inputs: tuple[Any, ...], output: Any) -> int:
    return output.size * inputs[0].shape[-1]


def _conv_transpose_macs(module: nn.ConvTranspose, inputs: tuple[Any, ...], output: Any) -> int:
    """Every number of the input meets every tap, also where the result is cut off."""
    kernel = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    return inputs[0].size * math.prod(kernel) * module.features


def _dense_general_macs(module: nn.DenseGeneral, inputs: tuple[Any, ...], output: Any) -> int:
    axes = (module.axis,) if isinstance(module.axis, int) else module.axis
    return output.size * math.prod(inputs[0].shape[axis] for axis in axes)


def _einsum_macs(module: nn.Einsum, inputs: tuple[Any, ...], output: Any) -> int:
    """One for each setting of all letters, those of an ellipsis included."""
    equation: str = (inputs[1] if len(inputs) > 1 else None) or module.einsum_str or ""
    operands, _, result = equation.replace(" ", "").replace("...", "").partition("->")
    left, right = operands.split(",")
    summed = set(right) - set(result)
    sizes = dict(zip(right, module.shape, strict=True))
    if len(set(left) - set(result) - summed):
        raise ValueError(
            f"the einsum {equation!r} sums letters of one operand; write the sum apart"
        )
    return output.size * math.prod(sizes[letter] for letter in summed)


def _attention_macs(
    module: nn.MultiHeadDotProductAttention, inputs: tuple[Any, ...], output: Any
) -> int:
    """The two products of all pairs of tokens; the projections are layers inside it."""
    queries, *others = (array for array in inputs if array is not None)
    keys = others[0] if others else queries
    channels = module.qkv_features or queries.shape[-1]
    return 2 * math.prod(queries.shape[:-1]) * keys.shape[-2] * channels


def _no_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    return 0


# Modules of flax, for models that use them.
_FLAX_MACS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv: _conv_macs,
    nn.ConvLocal: _conv_macs,
    nn.ConvTranspose: _conv_transpose_macs,
    nn.Dense: _dense_macs,
    nn.DenseGeneral: _dense_general_macs,
    nn.Einsum: _einsum_macs,
    nn.MultiHeadDotProductAttention: _attention_macs,
    nn.Embed: _no_macs,
    nn.LayerNorm: _no_macs,
    nn.RMSNorm: _no_macs,
    nn.GroupNorm: _no_macs,
    nn.BatchNorm: _no_macs,
}
