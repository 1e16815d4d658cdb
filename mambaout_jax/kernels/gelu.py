# SPDX-License-Identifier: Apache-2.0
"""The exact GELU, on CPUs with a backward pass that keeps the input alone."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import Operation, by_platform


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), PyTorch's default form (Hendrycks and Gimpel 2016), in the dtype of `x`.

    By erf: XLA:CPU takes twice as long for erfc, which JAX's own GELU uses. Differentiable in
    forward mode and twice forwards only within `plain_implementations`.
    """
    return _GELU.run("auto", x)


def _gelu(x):
    return x * _cumulative(x)


_gelu_cpu = jax.custom_vjp(_gelu)


def _gelu_fwd(x):
    return _gelu(x), x


def _gelu_bwd(x, dy):
    density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return (dy * (_cumulative(x) + x * density),)


_gelu_cpu.defvjp(_gelu_fwd, _gelu_bwd)

_GELU = Operation(
    "gelu",
    {"plain": _gelu, "cpu": _gelu_cpu},
    auto=by_platform(cpu=_gelu_cpu, default=_gelu),
    plain=("plain",),
)


def _cumulative(x):
    """Φ, the distribution function of the standard normal."""
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
