# SPDX-License-Identifier: Apache-2.0
"""A pair of attentions: one says how significant each token is, the next groups tokens by that.

Source: Ren et al., "SG-Former: Self-guided Transformer with Evolving Token Reallocation", ICCV
2023, arXiv 2308.12216, Section 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Float, Int

from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.mixers.attention import (
    attention_weights,
    from_heads,
    scaled_dot_product_attention,
    to_heads,
    to_map,
    to_windows,
)

_WINDOW = 7
# By the side of a coarse map's pixel, for each part of the sorted tokens, the least significant
# first: tokens in a group, and the quarter of all tokens that the part ends with.
GROUPS = {
    8: ((196, 1), (56, 3), (28, 4)),
    4: ((49, 1), (14, 3), (7, 4)),
    2: ((2, 2), (1, 4)),
    1: ((1, 4),),
}


class HybridAttention(nn.Module):
    """Half of the heads attend to a coarse map, the others in windows (Section 3.2).

    Attributes:
        heads: number of heads, even.
        reduction: side of a pixel of the coarse map.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    dtype: Dtype | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"]]:
        """Mixes the tokens, and says which weight each got on average."""
        (B, H, W, C), dtype, side = x.shape, self.dtype, self.reduction

        def dense(features, name, y):
            return Dense(features, dtype=dtype, name=name)(y)

        init = normal_fan_out_init(side**2 * C)
        coarse = Conv(C, side, side, dtype=dtype, kernel_init=init, name="coarse")(x)
        coarse = activation("gelu")(LayerNorm(1e-5, dtype=dtype, name="norm")(coarse))
        query = dense(C // 2, "q1", x).reshape(B, H * W, C // 2)
        key_value = dense(C, "kv1", coarse).reshape(B, -1, C)
        y1, seen = self._attend(query, *jnp.split(key_value, 2, axis=-1))
        seen = seen.reshape(coarse.shape[:3])
        sizes = zip((H, W), seen.shape[1:], strict=True)
        rows, columns = (numpy_for(n).arange(n) * coarsened // n for n, coarsened in sizes)
        y2, seen_near = self._in_windows(dense(C // 2, "q2", x), dense(C, "kv2", x))
        y = jnp.concatenate((y1.reshape(B, H, W, C // 2), y2), axis=-1)
        return y, jax.lax.stop_gradient(seen[:, rows][:, :, columns] + seen_near)

    def _attend(
        self, query: Float[Array, "B L C"], key: Float[Array, "B S C"], value: Float[Array, "B S C"]
    ) -> tuple[Float[Array, "B L C"], Float[Array, "B S"]]:
        """Attention of half of the heads, and the mean weight of each of the S tokens."""
        query, key, value = (to_heads(x, self.heads // 2) for x in (query, key, value))
        weights = attention_weights(query, key)  # (B, heads, L, S)
        return from_heads(weights.astype(value.dtype) @ value), weights.mean(axis=(1, 2))

    def _in_windows(
        self, query: Float[Array, "B H W C"], key_value: Float[Array, "B H W C2"]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"]]:
        (_, H, W, _), window = query.shape, (_WINDOW, _WINDOW)
        rows, columns = (0, -H % _WINDOW), (0, -W % _WINDOW)
        counts = (-(-H // _WINDOW), -(-W // _WINDOW))
        qkv = jnp.pad(jnp.concatenate((query, key_value), axis=-1), ((0, 0), rows, columns, (0, 0)))
        y, seen = self._attend(*jnp.split(to_windows(qkv, counts, window), 3, axis=-1))
        y, seen = (to_map(part, counts, window) for part in (y, seen[..., None]))
        return y[:, :H, :W], seen[:, :H, :W, 0]

    @nn.nowrap
    def macs(self, inputs: tuple, output: tuple[JaxArray, JaxArray]) -> int:
        B, H, W, C = output[0].shape
        coarse = H * W * (H // self.reduction) * (W // self.reduction)
        near = (H + -H % _WINDOW) * (W + -W % _WINDOW) * _WINDOW**2
        return B * C * (coarse + near)  # two products of half of the channels each


class GuidedAttention(nn.Module):
    """All tokens attend to groups of tokens of like significance (Section 3.3), or to all tokens.

    Attributes:
        heads: number of heads, even where there are groups.
        reduction: that of the stage's coarse map, which says how large groups are; 1: no groups.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    dtype: Dtype | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], significance: Float[Array, "B H W"] | None
    ) -> Float[Array, "B H W C"]:
        B, _, _, C = x.shape
        tokens = x.reshape(B, -1, C)
        sequences = {"kv": tokens}
        if significance is not None:  # tokens numbered row by row, and column by column
            both = jnp.concatenate((tokens, x.swapaxes(1, 2).reshape(tokens.shape)))
            weights = (significance, significance.swapaxes(1, 2))
            order = jnp.argsort(jnp.concatenate([w.reshape(B, -1) for w in weights]), axis=1)
            groups = self._sums(both, order)
            sequences = dict(zip(("kv1", "kv2"), jnp.split(groups, 2), strict=True))
        pairs = []
        for name, sequence in sequences.items():
            width = 2 * C // len(sequences)
            parts = jnp.split(Dense(width, dtype=self.dtype, name=name)(sequence), 2, axis=-1)
            pairs.append([to_heads(part, self.heads // len(sequences)) for part in parts])
        key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
        query = to_heads(Dense(C, dtype=self.dtype, name="q")(tokens), self.heads)
        return from_heads(scaled_dot_product_attention(query, key, value)).reshape(x.shape)

    def _sums(self, x: Float[Array, "B L C"], order: Int[Array, "B L"]) -> Float[Array, "B S C"]:
        """Weighted sums of groups of sorted tokens, the groups of each part of another size."""
        (B, L, C), sums = x.shape, []
        for i, (start, end, length, count) in enumerate(self._parts(L), start=1):
            xp = numpy_for(L)
            at = xp.minimum(start + xp.arange(count * length), xp.asarray(end - 1))
            part = jnp.take_along_axis(x, order[:, at, None], axis=1)
            part = part.reshape(B, count, length, C).swapaxes(2, 3)
            sums.append(Dense(1, dtype=self.dtype, name=f"f{i}")(part)[..., 0])  # (B, groups, C)
        return jnp.concatenate(sums, axis=1)

    @nn.nowrap
    def _parts(self, tokens: int) -> list[tuple[int, int, int, int]]:
        """Of each part of the sorted tokens: start, end, the size of its groups, their number."""
        lengths, quarters = zip(*GROUPS[self.reduction], strict=True)
        ends = [count * tokens // 4 for count in (0, *quarters)]
        parts = zip(ends[:-1], ends[1:], lengths, strict=True)
        return [(start, end, length, -((start - end) // length)) for start, end, length in parts]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        parts = self._parts(output.shape[1] * output.shape[2])
        return 2 * output.size * sum(count for *_, count in parts)
