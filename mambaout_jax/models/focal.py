# SPDX-License-Identifier: Apache-2.0
"""Focal: each window attends to its tokens, those around it, and summaries of windows further off.

Paper: Yang et al., "Focal Self-attention for Local-Global Interactions in Vision Transformers",
NeurIPS 2021, arXiv 2107.00641; sizes: Table 1 there. Names: classification/focal_transformer.py of
github.com/microsoft/Focal-Transformer at 57bb303, with configs/focal_{tiny,small}_patch4_window7_
224.yaml: two levels, no shift, no overlapping embeddings.

Tokens around a window at the border are those of the opposite border, as in the authors' code,
which rolls the map and masks nothing. A map that the windows do not fill is padded in each block,
so images may have any size; the last stage sees no tokens around its windows at any size, as the
authors' models for 224 pixels, where it has one window alone.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import normal_init, torch_inits
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import relative_bias, relative_position_index
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import (
    from_heads,
    scaled_dot_product_attention,
    to_heads,
    to_map,
    to_windows,
)
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
WINDOW = 7  # side of a window in tokens
_WINDOW = (WINDOW, WINDOW)
_TABLE = "relative_position_bias_table"


class FocalAttention(nn.Module):
    """Attention of each window to three kinds of keys (Section 3.2), one softmax over them all.

        the window's own tokens         with a bias for each offset, as in Swin
        `expand` rows of tokens around  with a bias for each pair
        summaries of `region`² windows  with a bias for each offset; none beyond the map

    A summary is a linear layer over the tokens of a window, the same for all channels.

    Attributes:
        heads: number of heads, a divisor of the channels.
        expand: how many tokens around a window are seen on each side, 0 for none.
        region: side of the square of windows whose summaries are seen, odd.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    expand: int
    region: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        (B, H, W, C), dtype = x.shape, self.dtype
        x = jnp.pad(x, ((0, 0), (0, -H % WINDOW), (0, -W % WINDOW), (0, 0)))
        counts = rows, columns = (-(-H // WINDOW), -(-W // WINDOW))
        tokens = to_windows(x, counts, _WINDOW).swapaxes(1, 2)  # (B · windows, C, L)
        summaries = Dense(1, dtype=dtype, name="summary")(tokens).reshape(B, rows, columns, C)

        project = Dense(3 * C, dtype=dtype, name="qkv")
        query, *own = jnp.split(project(x), 3, axis=-1)
        far = jnp.split(project(summaries), 3, axis=-1)[1:]
        key, value = (
            to_heads(
                jnp.concatenate(
                    (
                        to_windows(near, counts, _WINDOW),
                        self._around(near, counts),
                        self._region(distant),
                    ),
                    axis=1,
                ),
                self.heads,
            )
            for near, distant in zip(own, far, strict=True)
        )  # each (B · windows, heads, S, C / heads)
        mask = self._visible(rows, columns, key.shape[2])
        mask = jnp.tile(mask[:, None, None], (B, 1, WINDOW**2, 1))
        query = to_heads(to_windows(query, counts, _WINDOW), self.heads)
        y = from_heads(scaled_dot_product_attention(query, key, value, mask, self._bias()))
        y = Dense(C, dtype=dtype, name="proj")(y)
        return to_map(y, counts, _WINDOW)[:, :H, :W]

    def _around(self, x: Float[Array, "B H W C"], counts: tuple[int, int]) -> Float[Array, "N S C"]:
        """Tokens around each window, by the corner that they were rolled from."""
        if self.expand == 0:
            return to_windows(x, counts, _WINDOW)[:, :0]
        rolled = [
            # Of a symbolic size the steps are an array: else JAX asks which of both is the larger.
            to_windows(jnp.roll(x, numpy_for(*counts).asarray(steps), (1, 2)), counts, _WINDOW)
            for steps in _corners(self.expand)
        ]
        return jnp.concatenate(rolled, axis=1)[:, _around_window(self.expand)]

    def _region(self, x: Float[ArrayLike, "B R K C"]) -> Float[Array, "N S C"]:
        """The summaries around that of each window, zeros beyond the map."""
        x = jnp.asarray(x)
        half, (B, rows, columns, C) = self.region // 2, x.shape
        x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        shifted = [
            x[:, i : i + rows, j : j + columns] for i, j in np.ndindex(self.region, self.region)
        ]
        return jnp.stack(shifted, axis=3).reshape(B * rows * columns, self.region**2, C)

    def _visible(self, rows: int, columns: int, keys: int) -> Bool[np.ndarray | Array, "windows S"]:
        """Which keys each window sees: all but summaries beyond the map."""
        xp, steps = numpy_for(rows, columns), np.arange(self.region) - self.region // 2
        down, right = (xp.arange(n)[:, None] + steps[None] for n in (rows, columns))
        down, right = (down >= 0) & (down < rows), (right >= 0) & (right < columns)
        seen = down[:, None, :, None] & right[None, :, None, :]  # (rows, columns, region, region)
        near = xp.ones((rows * columns, keys - self.region**2), bool)
        return xp.concatenate((near, seen.reshape(rows * columns, self.region**2)), axis=1)

    def _bias(self) -> Float[Array, "1 heads L S"]:
        zeros, heads, length = nn.initializers.zeros, self.heads, WINDOW**2
        own = self.param(_TABLE, zeros, ((2 * WINDOW - 1) ** 2, heads), jnp.float32)
        parts = [relative_bias(jnp.asarray(own), _WINDOW, _WINDOW)]
        if self.expand:
            shape = (1, heads, length, len(_around_window(self.expand)))
            parts.append(self.param(f"{_TABLE}_to_neighbors", normal_init, shape, jnp.float32))
        shape = (heads, (WINDOW + self.region - 1) ** 2)
        far = self.param(f"{_TABLE}_to_windows", normal_init, shape, jnp.float32)
        parts.append(jnp.asarray(far)[:, _region_index(self.region)][None])
        return jnp.concatenate(parts, axis=-1)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        B, H, W, C = output.shape
        tokens = (H + -H % WINDOW) * (W + -W % WINDOW)
        around = len(_around_window(self.expand)) if self.expand else 0
        return 2 * B * tokens * C * (WINDOW**2 + around + self.region**2)


def _corners(expand: int) -> list[tuple[int, int]]:
    """How far the map is rolled to see what is around its windows, by corner."""
    return [(down, right) for down in (-expand, expand) for right in (-expand, expand)]


def _around_window(expand: int) -> Int[np.ndarray, "S"]:
    """Of the tokens of four rolled windows, those outside the window itself."""
    outside = []
    for down, right in _corners(expand):
        rows, columns = (
            (at >= WINDOW - expand) if step < 0 else (at < expand)
            for at, step in ((np.arange(WINDOW), down), (np.arange(WINDOW), right))
        )
        outside.append(rows[:, None] | columns[None])
    return np.flatnonzero(np.stack(outside))


def _region_index(region: int) -> Int[np.ndarray, "L S"]:
    """Row of the table for each token of a window and each summary around it."""
    own, others = (np.divmod(np.arange(side**2), side) for side in (WINDOW, region))
    down, right = (a[:, None] - b[None] + region - 1 for a, b in zip(own, others, strict=True))
    return down * (WINDOW + region - 1) + right


class FocalBlock(nn.Module):
    """Pre-norm transformer block of focal attention (Figure 3).

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        heads, expand, region: see `FocalAttention`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    expand: int
    region: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        y = FocalAttention(self.heads, self.expand, self.region, dtype, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(EPSILON, dtype=dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class FocalTransformer(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        expansions, regions: see `expand` and `region` of `FocalAttention`, by stage.
    """

    heads: tuple[int, ...]
    expansions: tuple[int, ...] = (3, 3, 3, 0)
    regions: tuple[int, ...] = (7, 5, 3, 1)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(FocalBlock)
        maps = []
        x = images
        for i, rates in enumerate(self.stage_rates):
            side, name = (2, f"downsample_{i}") if i else (4, "patch_embed")
            inits = torch_inits(side**2 * jnp.shape(x)[-1])
            norm = {"epsilon": EPSILON, "dtype": dtype}
            x = ConvNorm(self.dims[i], side, side, **norm, **inits, name=name)(x)
            options = (self.heads[i], self.expansions[i], self.regions[i])
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = FocalTransformer
HEAD = PooledHead

_HEAD = {"norm_first": True, "epsilon": EPSILON}
_SIZES = {"dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24)}

# fmt: off
VARIANTS = {
    "focal_tiny": Variant(
        {**_SIZES, "depths": (2, 2, 6, 2)}, _HEAD, 28_880_380, 4_953_223_680, 0.2, top1=82.2),
    "focal_small": Variant(
        {**_SIZES, "depths": (2, 2, 18, 2)}, _HEAD, 51_141_940, 9_480_362_496, 0.3, top1=83.5),
}
# fmt: on

DECAY = (*backbone.DECAY, (rf"/{_TABLE}(_to_neighbors|_to_windows)?$", False))

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_THEIRS = r"layers.\1.blocks.\2"
TORCH_NAMES = {
    "official": (
        (r"backbone/patch_embed/conv", r"patch_embed.proj"),
        (r"backbone/patch_embed/norm", r"patch_embed.norm"),
        *((rf"backbone/downsample_{i + 1}/conv", f"layers.{i}.downsample.proj") for i in range(3)),
        *((rf"backbone/downsample_{i + 1}/norm", f"layers.{i}.downsample.norm") for i in range(3)),
        (rf"{_BLOCK}/(norm\d)", rf"{_THEIRS}.\3"),
        (rf"{_BLOCK}/attention/summary", rf"{_THEIRS}.pool_layers.0"),
        (rf"{_BLOCK}/attention/({_TABLE}_to_windows)", rf"{_THEIRS}.attn.\3.0"),
        (rf"{_BLOCK}/attention/({_TABLE}\w*)", rf"{_THEIRS}.attn.\3"),
        (rf"{_BLOCK}/attention/(qkv|proj)", rf"{_THEIRS}.attn.\3"),
        (rf"{_BLOCK}/mlp/(\w+)", rf"{_THEIRS}.mlp.\3"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}


def torch_buffers(backbone: FocalTransformer, naming: str) -> dict[str, np.ndarray]:
    """The code's tables of indices."""
    tables = {}
    for i, depth in enumerate(backbone.depths):
        expand, region = backbone.expansions[i], backbone.regions[i]
        indices = {
            "relative_position_index": relative_position_index(WINDOW, WINDOW),
            "relative_position_index_0": _region_index(region),
            **({"valid_ind_rolled": _around_window(expand)} if expand else {}),
        }
        for j in range(depth):
            for name, index in indices.items():
                tables[f"layers.{i}.blocks.{j}.attn.{name}"] = index.astype(np.int64)
    return tables


WEIGHTS: dict[str, Weights] = {}
