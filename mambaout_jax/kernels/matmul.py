# SPDX-License-Identifier: Apache-2.0
"""Matrix products of tokens and weights, with a weight gradient that is fast on CPUs.

XLA:CPU takes up to twice as long for xᵀ dy as for the other two products of a linear layer. As
(dyᵀ x)ᵀ, and for many tokens in two halves which its threads share, it runs at their speed: 4.7 →
2.7, 8.2 → 5.6, 8.6 → 5.7 and 10.6 → 6.0 ms for 392, 1568, 6272 and 25088 tokens of MambaOut-Tiny's
stages.

A product that is wanted in parts (or whose input comes in parts) is one product in inference. In
training on CPUs it is one per part: as one, its gradients would have to be put together in a pass
over the tokens, which costs more than the copies of the weight's parts.

On GPUs and TPUs all this is an ordinary product. Differentiable in forward mode only within
`plain_implementations`.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import Operation, by_platform, is_known, plain_gradients

_HALVED_TOKENS = 4096  # from here on halves are faster


def matmul(x: Float[Array, "T I"], weight: Float[Array, "I O"]) -> Float[Array, "T O"]:
    """x @ weight.

    Args:
        x: tokens.
        weight: in the dtype of `x`; the gradients have that dtype too.
    """
    return _MATMUL.run("auto", x, weight)


def split_matmul(
    x: Float[Array, "T I"], weight: Float[Array, "I O"], widths: tuple[int, ...]
) -> tuple[Float[Array, "T _"], ...]:
    """x @ weight, cut into parts.

    Args:
        x: tokens.
        weight: in the dtype of `x`; the gradients have that dtype too.
        widths: the number of columns of each part; they add up to O.
    """
    return _SPLIT.run("auto", x, weight, widths=widths)


def join_matmul(
    parts: tuple[Float[Array, "T _"], ...], weight: Float[Array, "I O"]
) -> Float[Array, "T O"]:
    """concatenate(parts, axis=1) @ weight.

    Args:
        parts: the channels of the tokens, I in all.
        weight: in the dtype of `parts`; the gradients have that dtype too.
    """
    return _JOIN.run("auto", parts, weight)


def _matmul(x, weight):
    return x @ weight


def _matmul_fwd(x, weight):
    return x @ weight, (x, weight)


def _matmul_gradients_cpu(residuals, dy):
    x, weight = residuals
    return dy @ weight.T, weight_gradient(x, dy)


def _split(x, weight, widths):
    return _cut(x @ weight, widths, axis=1)


def _split_cpu(x, weight, widths):
    return tuple(x @ part for part in _cut(weight, widths, axis=1))


def _split_gradients_cpu(residuals, dys, widths):
    x, weight = residuals
    dx = sum(dy @ part.T for dy, part in zip(dys, _cut(weight, widths, axis=1), strict=True))
    return dx, jnp.concatenate([weight_gradient(x, dy) for dy in dys], axis=1)


def _join(parts, weight):
    return jnp.concatenate(parts, axis=1) @ weight


def _join_cpu(parts, weight):
    return sum(part @ rows for part, rows in _rows_of(parts, weight))


def _join_gradients_cpu(residuals, dy):
    parts, weight = residuals
    dparts = tuple(dy @ rows.T for _, rows in _rows_of(parts, weight))
    return dparts, jnp.concatenate([weight_gradient(part, dy) for part in parts], axis=0)


_matmul_auto = jax.custom_vjp(_matmul)
_matmul_auto.defvjp(
    _matmul_fwd, by_platform(cpu=_matmul_gradients_cpu, default=plain_gradients(_matmul))
)

_join_auto = jax.custom_vjp(_join)
_trained_join = by_platform(cpu=_join_cpu, default=_join)
_join_auto.defvjp(
    lambda parts, weight: (_trained_join(parts, weight), (parts, weight)),
    by_platform(cpu=_join_gradients_cpu, default=plain_gradients(_join)),
)

_split_auto = jax.custom_vjp(_split, nondiff_argnums=(2,))
_trained_split = by_platform(cpu=_split_cpu, default=_split)
_split_backward = by_platform(cpu=_split_gradients_cpu, default=plain_gradients(_split))
_split_auto.defvjp(
    lambda x, weight, widths: (_trained_split(x, weight, widths=widths), (x, weight)),
    lambda widths, residuals, dys: _split_backward(residuals, dys, widths=widths),
)

_MATMUL = Operation("matmul", {"plain": _matmul}, auto=_matmul_auto, plain=("plain",))
_SPLIT = Operation("split_matmul", {"plain": _split}, auto=_split_auto, plain=("plain",))
_JOIN = Operation("join_matmul", {"plain": _join}, auto=_join_auto, plain=("plain",))


def _rows_of(parts, weight):
    rows = _cut(weight, tuple(part.shape[1] for part in parts), axis=0)
    return zip(parts, rows, strict=True)


def _cut(x, widths, axis):
    return tuple(jnp.split(x, list(itertools.accumulate(widths[:-1])), axis=axis))


def weight_gradient(x: Float[Array, "T I"], dy: Float[Array, "T O"]) -> Float[Array, "I O"]:
    """xᵀ dy, in the dtype of `x`, in the form that is fast on CPUs."""
    T, I = x.shape  # noqa: E741
    if not is_known(T) or T < _HALVED_TOKENS or T % 2:
        return (dy.T @ x).T
    halves = dy.reshape(2, T // 2, -1), x.reshape(2, T // 2, I)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    pair = jnp.einsum("hto,hti->hoi", *halves, preferred_element_type=dtype)
    return pair.sum(axis=0).T.astype(x.dtype)
