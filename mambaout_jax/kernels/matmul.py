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

from mambaout_jax.kernels.dispatch import Operation, by_platform

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


_matmul_cpu = jax.custom_vjp(_matmul)


def _matmul_fwd(x, weight):
    return x @ weight, (x, weight)


def _matmul_bwd(residuals, dy):
    x, weight = residuals
    return dy @ weight.T, _weight_gradient(x, dy)


_matmul_cpu.defvjp(_matmul_fwd, _matmul_bwd)


def _split(x, weight, widths):
    return _cut(x @ weight, widths, axis=1)


_split_cpu = jax.custom_vjp(_split, nondiff_argnums=(2,))


def _split_fwd(x, weight, widths):
    return tuple(x @ part for part in _cut(weight, widths, axis=1)), (x, weight)


def _split_bwd(widths, residuals, dys):
    x, weight = residuals
    dx = sum(dy @ part.T for dy, part in zip(dys, _cut(weight, widths, axis=1), strict=True))
    return dx, jnp.concatenate([_weight_gradient(x, dy) for dy in dys], axis=1)


_split_cpu.defvjp(_split_fwd, _split_bwd)


def _join(parts, weight):
    return jnp.concatenate(parts, axis=1) @ weight


_join_cpu = jax.custom_vjp(_join)


def _join_fwd(parts, weight):
    return sum(part @ rows for part, rows in _rows_of(parts, weight)), (parts, weight)


def _join_bwd(residuals, dy):
    parts, weight = residuals
    dparts = tuple(dy @ rows.T for _, rows in _rows_of(parts, weight))
    return dparts, jnp.concatenate([_weight_gradient(part, dy) for part in parts], axis=0)


_join_cpu.defvjp(_join_fwd, _join_bwd)


def _operation(name, plain, cpu):
    auto = by_platform(cpu=cpu, default=plain)
    return Operation(name, {"plain": plain, "cpu": cpu}, auto, plain=("plain",))


_MATMUL = _operation("matmul", _matmul, _matmul_cpu)
_SPLIT = _operation("split_matmul", _split, _split_cpu)
_JOIN = _operation("join_matmul", _join, _join_cpu)


def _rows_of(parts, weight):
    rows = _cut(weight, tuple(part.shape[1] for part in parts), axis=0)
    return zip(parts, rows, strict=True)


def _cut(x, widths, axis):
    return tuple(jnp.split(x, list(itertools.accumulate(widths[:-1])), axis=axis))


def _weight_gradient(x, dy):
    T, I = x.shape  # noqa: E741
    if T < _HALVED_TOKENS or T % 2:
        return (dy.T @ x).T
    halves = dy.reshape(2, T // 2, -1), x.reshape(2, T // 2, I)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    pair = jnp.einsum("hto,hti->hoi", *halves, preferred_element_type=dtype)
    return pair.sum(axis=0).T.astype(x.dtype)
