# SPDX-License-Identifier: Apache-2.0
"""MViTv2: attention whose queries, keys and values are pooled, with relative positions by axis.

Paper: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and
Detection", CVPR 2022, arXiv 2112.01526; sizes: Table 1 there. Names as in
github.com/huggingface/pytorch-image-models (timm), and those of the authors' release,
github.com/facebookresearch/mvit, which numbers blocks through all stages.

There is no class token. The release applies a softmax while it evaluates; these are the logits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float, Int

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.downsample import max_pool
from mambaout_jax.layers.initializers import normal_init, torch_inits, uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import map_size
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.layers.resize import resize_linear
from mambaout_jax.mixers.attention import from_heads, scaled_dot_product_attention, split_heads
from mambaout_jax.published import Weights

KEY_STRIDE = 4  # of the first stage; half of it in the next, and so on down to 1
_Size = tuple[int, int]


class Pool(nn.Module):
    """Depthwise convolution of each head's map, the same for all heads, and layer norm.

    Attributes:
        stride: step in tokens.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    stride: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N _ _ C"]:
        x = DepthwiseConv(
            3,
            self.conv_implementation,
            use_bias=False,
            dtype=self.dtype,
            stride=self.stride,
            kernel_init=uniform_fan_in_init(9),
            name="conv",
        )(x)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class PooledAttention(nn.Module):
    """Attention of pooled queries to pooled keys and values (Eq. 6 and 7).

        query + softmax(query keyᵀ / √width + query · (rows[offset] + columns[offset])) value

    Attributes:
        features: channels that come out, and those of the heads together.
        heads: number of heads, a divisor of `features`.
        stride, key_stride: steps of the pooling of queries, and of keys and values.
        grid: rows and columns of the map that the tables of positions are made for.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    heads: int
    stride: int
    key_stride: int
    grid: _Size
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ F"]:
        (B, H, W, _), width = x.shape, self.features // self.heads
        qkv = Dense(3 * self.features, dtype=self.dtype, name="qkv")(x)
        parts = split_heads(qkv.reshape(B, H * W, 3 * self.features), self.heads)
        strides = (self.stride, self.key_stride, self.key_stride)
        options = (self.conv_implementation, self.dtype)
        query, key, value = (
            Pool(stride, *options, name=f"pool_{name}")(part.reshape(B * self.heads, H, W, width))
            for name, stride, part in zip("qkv", strides, parts, strict=True)
        )  # each (B · heads, rows, columns, width)
        size, keys = (query.shape[1], query.shape[2]), (key.shape[1], key.shape[2])
        pairs = (size[0] * size[1], keys[0] * keys[1])
        bias = self._bias(query, size, keys).reshape(B, self.heads, *pairs)
        query, key, value = (
            part.reshape(B, self.heads, part.shape[1] * part.shape[2], width)
            for part in (query, key, value)
        )
        y = scaled_dot_product_attention(query, key, value, bias=bias) + query
        y = from_heads(y).reshape(B, *size, self.features)
        return Dense(self.features, dtype=self.dtype, name="proj")(y)

    def _bias(
        self, query: Float[Array, "N _ _ width"], size: _Size, keys: _Size
    ) -> Float[Array, "N _ _ _ _"]:
        """Products of each query with the positions of all rows of keys, and of all columns."""
        width = query.shape[-1]
        products = []
        for axis, equation in enumerate(("nhwc,hkc->nhwk", "nhwc,wkc->nhwk")):
            length = max(n[axis] for n in self._pooled(self.grid))
            shape, name = (2 * length - 1, width), ("rows", "columns")[axis]
            table = jnp.asarray(self.param(name, normal_init, shape, jnp.float32))
            query, table = nn.dtypes.promote_dtype(query, table, dtype=self.dtype)
            longest = jax.core.max_dim(size[axis], keys[axis])
            if longest != length:  # symbols are like no number
                table = resize_linear(table, (2 * longest - 1,))
            products.append(jnp.einsum(equation, query, table[_offsets(size[axis], keys[axis])]))
        return products[0][..., None] + products[1][:, :, :, None]

    def _pooled(self, size: _Size) -> tuple[_Size, _Size]:
        """Sizes of the maps of queries and keys that a map of a size becomes."""
        strides = (self.stride, self.key_stride)
        queries, keys = ((-(-size[0] // step), -(-size[1] // step)) for step in strides)
        return queries, keys

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        """Both products of attention, and those of queries with positions."""
        _, H, W, _ = inputs[0].shape
        rows, columns = self._pooled((H, W))[1]
        return output.size * (2 * rows * columns + rows + columns)


def _offsets(queries: int, keys: int) -> Int[np.ndarray | Array, "queries keys"]:
    """Row of a table for each query and key of one axis; the shorter axis takes longer steps."""
    longest, xp = jax.core.max_dim(queries, keys), numpy_for(queries, keys)
    # The place of a query is its number times longest / queries: fractions of one denominator.
    at = xp.arange(queries)[:, None] * (longest * keys)
    other = (keys - 1 - xp.arange(keys))[None] * (longest * queries)
    return (at + other) // (queries * keys)


class MViTv2Block(nn.Module):
    """Pre-norm transformer block; of other channels or another size at the start of a stage.

        y = norm1(x);  x = max_pool(shortcut(y) or x) + attention(y)
        x = x + mlp(norm2(x))

    Attributes:
        features, heads, stride, key_stride, grid, conv_implementation: see `PooledAttention`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    heads: int
    stride: int
    key_stride: int
    grid: _Size
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        features, dtype = self.features, self.dtype
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        if x.shape[-1] != features:
            x = Dense(features, dtype=dtype, name="shortcut")(y)
        if self.stride > 1:
            x = max_pool(x, self.stride)
        options = (features, self.heads, self.stride, self.key_stride, self.grid)
        y = PooledAttention(*options, self.conv_implementation, dtype, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y = Mlp(4 * features, dtype=dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class MViTv2(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        table_size: side or (height, width) in pixels of the images that the tables of relative
            positions are made for; for others they are interpolated.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    heads: tuple[int, ...] = (1, 2, 4, 8)
    table_size: int | tuple[int, int] = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(MViTv2Block)
        maps = []
        inits = torch_inits(49 * self.in_chans)
        x = Conv(self.dims[0], 7, 4, 3, dtype=dtype, **inits, name="patch_embed")(images)
        for i, rates in enumerate(self.stage_rates):
            key_stride = max(1, KEY_STRIDE // 2**i)
            for j, rate in enumerate(rates):
                stride = 2 if i > 0 and j == 0 else 1
                grid = map_size(self.table_size, self.strides[i] // stride)
                sizes = (self.dims[i], self.heads[i], stride, key_stride, grid)
                options = (*sizes, self.conv_implementation, rate, dtype)
                x = block(*options, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = MViTv2
HEAD = PooledHead

_HEAD = {"norm_first": True}

# fvcore, which rounds those of einsums to four digits, counts 2,368 and 3,728 fewer
# multiply-accumulates.
# fmt: off
VARIANTS = {
    "mvitv2_small": Variant(
        {"depths": (1, 2, 11, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 34_870_216, 6_959_715_072, 0.1, top1=83.6),
    "mvitv2_base": Variant(
        {"depths": (2, 3, 16, 3), "dims": (96, 192, 384, 768)},
        _HEAD, 51_472_744, 10_102_438_656, 0.3, top1=84.4),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/attention/(rows|columns)$", False))

_Rules = tuple[tuple[str, ...], ...]


def _block_names(ours: str, theirs: str, shortcut: str) -> _Rules:
    return (
        (rf"{ours}/(?P<part>norm\d)", rf"{theirs}.\g<part>"),
        (rf"{ours}/shortcut", f"{theirs}.{shortcut}"),
        (rf"{ours}/attention/rows", f"{theirs}.attn.rel_pos_h"),
        (rf"{ours}/attention/columns", f"{theirs}.attn.rel_pos_w"),
        (rf"{ours}/attention/(?P<part>qkv|proj)", rf"{theirs}.attn.\g<part>"),
        (rf"{ours}/attention/pool_(?P<part>[qkv])/conv", rf"{theirs}.attn.pool_\g<part>"),
        (rf"{ours}/attention/pool_(?P<part>[qkv])/norm", rf"{theirs}.attn.norm_\g<part>"),
        (rf"{ours}/mlp/(?P<part>fc\d)", rf"{theirs}.mlp.\g<part>"),
    )


def _torch_names(variant: Variant) -> dict[str, _Rules]:
    """The release numbers blocks through all stages."""
    depths = variant.backbone["depths"]
    ends = ((r"backbone/patch_embed", r"patch_embed.proj"), (r"head/norm", r"norm"))
    blocks = [(i, j) for i, depth in enumerate(depths) for j in range(depth)]
    return {
        "timm": (
            *ends,
            (r"head/classifier", r"head.fc"),
            *_block_names(
                r"backbone/stage_(\d)_block_0*(\d+)", r"stages.\1.blocks.\2", "shortcut_proj_attn"
            ),
        ),
        "official": (
            *ends,
            (r"head/classifier", r"head.projection"),
            *(
                rule
                for n, (i, j) in enumerate(blocks)
                for rule in _block_names(f"backbone/stage_{i}_block_{j:02d}", f"blocks.{n}", "proj")
            ),
        ),
    }


TORCH_NAMES = _torch_names

WEIGHTS: dict[str, Weights] = {}
