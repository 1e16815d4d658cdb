# SPDX-License-Identifier: Apache-2.0
"""Attention whose scores are cosines: to all tokens, or to neighbours and a coarse map at once.

Source: Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", CVPR 2024, arXiv
2311.17132, Section 3.

Scores are multiplied by the logarithm of how many keys a token sees, and positions are functions of
coordinates, so that maps may have any size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Float, Int

from mambaout_jax.kernels.dispatch import is_known, numpy_for
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import unfold
from mambaout_jax.layers.initializers import normal_fan_out_init, normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.resize import mean_pool_to, pooling_weights
from mambaout_jax.mixers.attention import (
    check_heads,
    from_heads,
    scaled_dot_product_attention,
    split_heads,
)

_WINDOW = 3  # side of the neighbourhood
_WIDTH = 512  # of the perceptron that makes biases of coordinates
_TEMPERATURE = float(np.log(np.expm1(1 / 0.24)))  # at first; its softplus is what counts


def unit(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Vectors of length 1, in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-24))


def means(size: int, side: int) -> int:
    """How many means of `side` pixels an axis becomes, one at least."""
    return jax.core.max_dim(size // side, 1)


def distances(
    size: int, side: int, unit_size: int
) -> tuple[Float[np.ndarray | Array, "N"], Int[np.ndarray | Array, "L S"]]:
    """Along one axis: the distances of pixels from means, on a logarithmic scale, each once.

    Args:
        size: pixels; if it is a symbol of `jax.export`, a multiple of `side`.
        side: pixels of a mean, 1 for the pixels themselves.
        unit_size: pixels of the grid that 8 units span.

    Returns:
        Distances, rising, and for each pixel and mean the number of theirs.
    """
    count, xp = means(size, side), numpy_for(size)
    places = xp.arange(size)[:, None]
    if size == count * side:
        # Of a symbol there are some more, which no pair has: their number is never negative.
        length = 2 * size - side if is_known(size) else 2 * size
        away = xp.arange(length) - (size - side) - (side - 1) / 2
        number = places - side * xp.arange(count)[None] + (size - side)
    else:
        away = places - pooling_weights(size, count) @ places[:, 0]
        away, number = np.unique(away.round(9), return_inverse=True)
        number = number.reshape(size, count)
    away = away * 8 / max(1, unit_size - 1)
    return xp.sign(away) * xp.log2(1 + xp.abs(away)) / 3, number


class PositionBias(nn.Module):
    """Bias of each pair of a pixel and a mean, a perceptron of how far apart they are.

    Attributes:
        heads: number of biases of a pair.
        side: pixels of a mean along each axis.
        grid: rows and columns of the map at the published size.
    """

    heads: int
    side: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, size: tuple[int, int]) -> Float[Array, "heads L S"]:
        (down, rows), (right, columns) = (
            distances(n, self.side, published) for n, published in zip(size, self.grid, strict=True)
        )
        table = jnp.stack(jnp.meshgrid(down, right, indexing="ij"), axis=-1)
        y = jax.nn.relu(Dense(_WIDTH, name="fc1")(table))
        y = Dense(self.heads, name="fc2")(y)  # (distances down, distances right, heads)
        y = y[rows][:, :, columns]  # (H, pooled H, W, pooled W, heads)
        y = y.transpose(4, 0, 2, 1, 3)
        return y.reshape(self.heads, size[0] * size[1], rows.shape[1] * columns.shape[1])


class CosineQuery(nn.Module):
    """Directions of queries, and what their products with those of keys are scores of (Eq. 6).

    Attributes:
        heads: number of heads.
    """

    heads: int

    @nn.compact
    def __call__(
        self, query: Float[Array, "B L heads width"], keys: Float[Array, "1 #L 1 1"]
    ) -> tuple[Float[Array, "B L heads width"], Float[Array, "B L heads width"]]:
        """`keys` is how many keys each query sees."""
        shape = (self.heads, 1, query.shape[-1])
        embedding = self.param("query_embedding", normal_init, shape, jnp.float32)
        shape, init = (self.heads, 1, 1), nn.initializers.constant(_TEMPERATURE)
        temperature = self.param("temperature", init, shape, jnp.float32)
        direction = unit(query)
        embedding, temperature = (
            jnp.asarray(x).swapaxes(0, 1)[None] for x in (embedding, temperature)
        )
        return direction, (direction + embedding) * jax.nn.softplus(temperature) * jnp.log(keys)

    @nn.nowrap
    def macs(self, inputs: tuple, output: object) -> int:
        return 0


class AggregatedAttention(nn.Module):
    """Attention to 3 x 3 neighbours and a coarse map (Section 3.2).

    Attributes:
        heads: number of heads.
        reduction: side of a pixel of the coarse map.
        grid: see `PositionBias`.
        dtype: dtype of the computation, None to promote; scores are at least float32.
    """

    heads: int
    reduction: int
    grid: tuple[int, int]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        check_heads(self.heads, C)
        by_head, pooled = (B, H * W, self.heads, C // self.heads), self._pooled(H, W)
        key_value = Dense(2 * C, dtype=self.dtype, name="kv")

        key, near_value = jnp.split(key_value(x), 2, axis=-1)
        near_key = unit(key.reshape(by_head)).reshape(x.shape)
        near_key, near_value = (
            unfold(t, _WINDOW, 1, _WINDOW // 2).reshape(*by_head, -1)
            for t in (near_key, near_value)
        )  # (B, L, heads, width, K)
        ones = jnp.ones((1, H, W, 1), near_key.dtype)
        visible = unfold(ones, _WINDOW, 1, _WINDOW // 2).reshape(1, H * W, 1, -1)

        far = key_value(self._coarse(x, pooled)).reshape(B, -1, 2, *by_head[2:])
        far_key, far_value = unit(far[:, :, 0]), far[:, :, 1]  # (B, S, heads, width)

        query = Dense(C, dtype=self.dtype, name="q")(x).reshape(by_head)
        seen = visible.sum(axis=-1, keepdims=True) + jnp.asarray(far.shape[1], visible.dtype)
        direction, query = CosineQuery(self.heads, name="query")(query, seen)
        near = (query[..., None] * near_key).sum(axis=-2) + self._near_bias()
        near = jnp.where(visible > 0, near, -jnp.inf)  # (B, L, heads, K)
        bias = PositionBias(self.heads, self.reduction, self.grid, name="position_bias")((H, W))
        far = jnp.einsum("blhd,bshd->blhs", query, far_key) + bias.swapaxes(0, 1)[None]
        weights = jax.nn.softmax(jnp.concatenate((near, far), axis=-1), axis=-1)
        near, far = jnp.split(weights, (_WINDOW**2,), axis=-1)
        near = near + self._learned(direction)

        y = (near.astype(x.dtype)[..., None, :] * near_value).sum(axis=-1)
        y = y + jnp.einsum("blhs,bshd->blhd", far.astype(x.dtype), far_value)
        return Dense(C, dtype=self.dtype, name="proj")(y.reshape(x.shape))

    @nn.nowrap
    def _pooled(self, height: int, width: int) -> tuple[int, int]:
        return means(height, self.reduction), means(width, self.reduction)

    def _coarse(self, x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B _ _ C"]:
        init = normal_fan_out_init(x.shape[-1])
        y = Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="reduce")(x)
        y = mean_pool_to(activation("gelu")(y), size)
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(y)

    def _near_bias(self) -> Float[Array, "1 1 heads K"]:
        shape, init = (self.heads, _WINDOW**2), nn.initializers.normal(4e-4)
        table = self.param("relative_pos_bias_local", init, shape, jnp.float32)
        return jnp.asarray(table)[None, None]

    def _learned(self, query: Float[Array, "B L heads width"]) -> Float[Array, "B L heads K"]:
        """Weights of the neighbours that the direction of the query alone decides."""
        shape = (self.heads, query.shape[-1], _WINDOW**2)
        tokens = self.param("learnable_tokens", normal_init, shape, jnp.float32)
        shape = (self.heads, 1, _WINDOW**2)
        bias = self.param("learnable_bias", nn.initializers.zeros, shape, jnp.float32)
        return jnp.einsum("blhd,hdk->blhk", query, tokens) + jnp.asarray(bias).swapaxes(0, 1)[None]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        rows, columns = self._pooled(*output.shape[1:3])
        return output.size * (3 * _WINDOW**2 + 2 * rows * columns)


class CosineAttention(nn.Module):
    """Attention between all tokens, whose scores are cosines.

    Attributes:
        heads: number of heads.
        grid: see `PositionBias`.
        dtype: dtype of the computation, None to promote; scores are at least float32.
    """

    heads: int
    grid: tuple[int, int]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        qkv = Dense(3 * C, dtype=self.dtype, name="qkv")(x).reshape(B, H * W, 3 * C)
        query, key, value = split_heads(qkv, self.heads)
        seen = jnp.asarray(H * W, jnp.promote_types(query.dtype, jnp.float32))
        cosine = CosineQuery(self.heads, name="query")
        _, query = cosine(query.swapaxes(1, 2), seen.reshape(1, 1, 1, 1))
        bias = PositionBias(self.heads, 1, self.grid, name="position_bias")((H, W))
        query, key = query.swapaxes(1, 2), unit(key)
        y = scaled_dot_product_attention(query, key, value, bias=bias[None], scale=1.0)
        return Dense(C, dtype=self.dtype, name="proj")(from_heads(y).reshape(x.shape))

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 2 * output.size * output.shape[1] * output.shape[2]
