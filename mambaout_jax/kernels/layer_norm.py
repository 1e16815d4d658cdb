# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation, with a backward pass that keeps the input and two numbers per token.

Differentiated automatically it also keeps products of the statistics with the scale, each as large
as the input.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import Operation, by_platform, plain_gradients


def layer_norm(
    x: Float[Array, "... C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"] | None = None,
    epsilon: float = 1e-6,
) -> Float[Array, "... C"]:
    """(x - mean) / √(variance + epsilon) · scale + bias over the channels.

    Computed in at least float32, whatever the dtypes. Differentiable in forward mode only within
    `plain_implementations`.

    Args:
        x: tokens.
        scale, bias: a factor and a term for each channel; without a bias nothing is added.
        epsilon: keeps the root of a variance of zero away from zero; a Python number.

    Returns:
        In the dtype of `x`; the gradients have the dtypes of the arguments.
    """
    return _LAYER_NORM.run("auto", x, scale, bias, epsilon=epsilon)


def _layer_norm(x, scale, bias, epsilon):
    return _normalise(x, scale, bias, epsilon)[0]


def _layer_norm_fwd(x, scale, bias, epsilon):
    y, mean, inverse = _normalise(x, scale, bias, epsilon)
    return y, (x, mean, inverse, scale, bias)


def _gradients_cpu(residuals, dy, epsilon):
    del epsilon  # in `inverse`
    x, mean, inverse, scale, bias = residuals
    dy = dy.astype(mean.dtype)
    normal = (x.astype(mean.dtype) - mean) * inverse
    tokens = tuple(range(x.ndim - 1))
    dscale = (dy * normal).sum(axis=tokens).astype(scale.dtype)
    dbias = None if bias is None else dy.sum(axis=tokens).astype(bias.dtype)
    dnormal = dy * _per_channel(scale, x, mean.dtype)
    along = (dnormal * normal).mean(axis=-1, keepdims=True)
    dx = inverse * (dnormal - dnormal.mean(axis=-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), dscale, dbias


def _gradients(residuals, dy, epsilon):
    x, _, _, scale, bias = residuals
    return plain_gradients(_layer_norm)((x, scale, bias), dy, epsilon=epsilon)


_backward = by_platform(cpu=_gradients_cpu, default=_gradients)
_layer_norm_auto = jax.custom_vjp(_layer_norm, nondiff_argnums=(3,))
_layer_norm_auto.defvjp(
    _layer_norm_fwd, lambda epsilon, residuals, dy: _backward(residuals, dy, epsilon=epsilon)
)

_LAYER_NORM = Operation(
    "layer_norm", {"plain": _layer_norm}, auto=_layer_norm_auto, plain=("plain",)
)


def _normalise(x, scale, bias, epsilon):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(dtype)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * _per_channel(scale, x, dtype)
    if bias is not None:
        y = y + _per_channel(bias, x, dtype)
    return y.astype(x.dtype), mean, inverse


def _per_channel(value, x, dtype):
    return value.astype(dtype).reshape((1,) * (x.ndim - 1) + value.shape)
