# SPDX-License-Identifier: Apache-2.0
"""Softmax attention, fully visible or causal (Vaswani et al. 2017, Eq. 1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float

from mambaout_jax.layers.linear import Dense


def scaled_dot_product_attention(
    query: Float[Array, "B heads L width"],
    key: Float[Array, "B heads S width"],
    value: Float[Array, "B heads S width"],
    mask: Bool[Array, "L S"] | None = None,
) -> Float[Array, "B heads L width"]:
    """softmax(query keyᵀ / √width) value.

    The softmax is computed in at least float32, the rest in the dtype of the arguments.

    Args:
        query: of the L tokens that look.
        key, value: of the S tokens that they look at.
        mask: [i, j]: does token i see token j? Each must see one; None: each sees all.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhld,bhsd->bhls", query, key, preferred_element_type=dtype)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhls,bhsd->bhld", weights, value)


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention, with biases on both projections.

    Attributes:
        heads: number of heads, a divisor of the channels.
        causal: a token sees itself and those before it, instead of all. The parameters are the
            same.
        dtype: of the computation, None to promote.
    """

    heads: int
    causal: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        """Mixes tokens.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        batch, length, channels = x.shape
        if channels % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide the {channels} channels; allowed are "
                f"{[n for n in range(1, channels + 1) if channels % n == 0]}"
            )
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(batch, length, 3, self.heads, -1)
        query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))  # each (B, heads, L, C / heads)
        mask = jnp.tri(length, dtype=bool) if self.causal else None
        y = scaled_dot_product_attention(query, key, value, mask)
        y = y.swapaxes(1, 2).reshape(x.shape)  # (B, L, C)
        return Dense(channels, dtype=self.dtype, name="proj")(y)
