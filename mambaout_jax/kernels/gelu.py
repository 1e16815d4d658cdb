# SPDX-License-Identifier: Apache-2.0
"""The exact GELU, with a backward pass that keeps the input alone."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), PyTorch's default form (Hendrycks and Gimpel 2016), for reverse mode only.

    By erf: XLA:CPU takes twice as long for erfc, which JAX's own GELU uses. In the dtype of `x`.
    """
    return x * _cumulative(x)


def _gelu_fwd(x):
    return gelu(x), x


def _gelu_bwd(x, dy):
    density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return (dy * (_cumulative(x) + x * density),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _cumulative(x):
    """Φ, the distribution function of the standard normal."""
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
