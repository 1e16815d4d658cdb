# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation whose backward pass keeps the input and two numbers per token.

Differentiated automatically it also keeps products of the statistics with the scale, as large as
the input each.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-6


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "... C"], scale: Float[Array, "C"], bias: Float[Array, "C"]
) -> Float[Array, "... C"]:
    """(x - mean) / √(variance + 1e-6) · scale + bias over the channels, for reverse mode only.

    Computed in at least float32, whatever the dtypes.

    Returns:
        In the dtype of `x`; the gradients have the dtypes of the arguments.
    """
    return _normalise(x, scale, bias)[0]


def _layer_norm_fwd(x, scale, bias):
    y, mean, inverse = _normalise(x, scale, bias)
    return y, (x, mean, inverse, scale, bias)


def _layer_norm_bwd(residuals, dy):
    x, mean, inverse, scale, bias = residuals
    normal, dy = (x.astype(mean.dtype) - mean) * inverse, dy.astype(mean.dtype)
    tokens = tuple(range(x.ndim - 1))
    dscale, dbias = (dy * normal).sum(axis=tokens), dy.sum(axis=tokens)
    dnormal = dy * _per_channel(scale, x, mean.dtype)
    along = (dnormal * normal).mean(axis=-1, keepdims=True)
    dx = inverse * (dnormal - dnormal.mean(axis=-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _normalise(x, scale, bias):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(dtype)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + EPSILON)
    scale, bias = (_per_channel(value, x, dtype) for value in (scale, bias))
    return ((wide - mean) * inverse * scale + bias).astype(x.dtype), mean, inverse


def _per_channel(value, x, dtype):
    return value.astype(dtype).reshape((1,) * (x.ndim - 1) + value.shape)
