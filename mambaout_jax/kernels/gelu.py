# SPDX-License-Identifier: Apache-2.0
"""The exact GELU, with a backward pass that keeps the input alone."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import Operation, by_platform, plain_gradients


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), PyTorch's default form (Hendrycks and Gimpel 2016), in the dtype of `x`.

    Computed in at least float32, with its gradient: in bfloat16 1 + erf is 0 from -3.1 on. By erf:
    XLA:CPU takes twice as long for erfc, which JAX's own GELU uses. Differentiable in forward mode
    and twice forwards only within `plain_implementations`.
    """
    return _GELU.run("auto", x)


def _gelu(x):
    wide = _widen(x)
    return (wide * _cumulative(wide)).astype(x.dtype)


def _gelu_fwd(x):
    return _gelu(x), (x,)


def _gradient_cpu(residuals, dy):
    (x,) = residuals
    wide = _widen(x)
    return ((_widen(dy) * (_cumulative(wide) + wide * _density(wide))).astype(x.dtype),)


_gelu_auto = jax.custom_vjp(_gelu)
_gelu_auto.defvjp(_gelu_fwd, by_platform(cpu=_gradient_cpu, default=plain_gradients(_gelu)))

_GELU = Operation("gelu", {"plain": _gelu}, auto=_gelu_auto, plain=("plain",))


def _widen(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_jvp
def _cumulative(x):
    """Φ, the distribution function of the standard normal.

    Its derivative is written here: that of lax.erf is not taken within shard_map by JAX 0.12.
    """
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@_cumulative.defjvp
def _cumulative_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _cumulative(x), _density(x) * dx


def _density(x):
    """The density of the standard normal."""
    return jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
