# SPDX-License-Identifier: Apache-2.0
"""Which dtype a model computes in."""

import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float, Num


def compute_dtype(dtype: Dtype) -> Dtype | None:
    """The `dtype` argument of a layer for a model's `dtype`.

    float32 means *at least* float32: it becomes None, with which layers promote, so that float64
    parameters and images stay float64 all the way through.
    """
    return None if jnp.dtype(dtype) == jnp.float32 else dtype


def at_least_float32(x: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The array in float32, or where it is wider as it is."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
