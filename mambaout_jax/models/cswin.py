# SPDX-License-Identifier: Apache-2.0
"""CSWin: attention in horizontal and in vertical stripes of a map, by half of the heads each.

Paper: Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped
Windows", CVPR 2022, arXiv 2107.00652; sizes: Table 1 there. Names: models/cswin.py of
github.com/microsoft/CSWin-Transformer at f111ae2.

A map that the stripes do not fill is padded with zeros on both sides, behind the projection, as in
the authors' code for segmentation, so that images may have any size. As there, the last stage alone
attends to the whole map at once; the authors' classifier for smaller images than 224 pixels would
also do so where a stripe is as wide as the map.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import torch_inits
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import (
    from_heads,
    scaled_dot_product_attention,
    split_heads,
    to_map,
    to_windows,
)
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm


class StripeAttention(nn.Module):
    """Attention inside stripes, with "locally-enhanced positional encoding" (Eq. 9).

        softmax(query keyᵀ / √width) value + conv(value)

    The depthwise convolution sees zeros around each stripe.

    Attributes:
        heads: number of heads, a divisor of the channels.
        stripe: rows and columns of a stripe, None for all of the map's.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    stripe: tuple[int | None, int | None]
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, qkv: Float[Array, "B H W C3"]) -> Float[Array, "B H W C"]:
        """Mixes the tokens of each stripe; query, key and value stand one after the other."""
        _, H, W, _ = qkv.shape
        (rows, down, (top, bottom)), (columns, across, (left, right)) = (
            _cut(length, stripe) for length, stripe in zip((H, W), self.stripe, strict=True)
        )
        counts, stripe = (down, across), (rows, columns)
        padded = jnp.pad(qkv, ((0, 0), (top, bottom), (left, right), (0, 0)))
        windows = to_windows(padded, counts, stripe)  # (stripes, L, 3 C)
        query, key, value = split_heads(windows, self.heads)
        y = from_heads(scaled_dot_product_attention(query, key, value))
        options = {"dtype": self.dtype, **torch_inits(9), "name": "position"}
        conv = DepthwiseConv(3, self.conv_implementation, **options)
        values = windows[..., 2 * y.shape[-1] :].reshape(y.shape[0], *stripe, y.shape[-1])
        y = y + conv(values).reshape(y.shape)
        return to_map(y, counts, stripe)[:, top : top + H, left : left + W]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        B, H, W, C = output.shape
        (rows, down, _), (columns, across, _) = _cut(H, self.stripe[0]), _cut(W, self.stripe[1])
        return 2 * B * down * across * C * (rows * columns) ** 2


def _cut(length: int, stripe: int | None) -> tuple[int, int, tuple[int, int]]:
    """Of an axis: how long stripes are, how many, and the zeros on both sides that fill them up."""
    if stripe is None:
        return length, 1, (0, 0)
    missing = -length % stripe
    return stripe, -(-length // stripe), (missing // 2, missing - missing // 2)


class CSWinBlock(nn.Module):
    """Pre-norm transformer block of cross-shaped windows (Eq. 5).

        x = x + proj(concat(vertical stripes, horizontal stripes))
        x = x + mlp(norm2(x))

    Attributes:
        heads: heads of the attention.
        stripe: width of the stripes, 0 for attention to the whole map.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    stripe: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype, channels = self.dtype, x.shape[-1]
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        qkv = Dense(3 * channels, dtype=dtype, name="qkv")(y)
        width = self.stripe
        stripes = ((None, width), (width, None)) if width else ((None, None),)
        share = channels // len(stripes)
        parts = []
        for i, stripe in enumerate(stripes):
            own = qkv.reshape(*x.shape[:3], 3, channels)[..., i * share : (i + 1) * share]
            own = own.reshape(*x.shape[:3], 3 * share)
            options = (self.heads // len(stripes), stripe, self.conv_implementation, dtype)
            parts.append(StripeAttention(*options, name=f"stripes_{i}")(own))
        y = Dense(channels, dtype=dtype, name="proj")(jnp.concatenate(parts, axis=-1))
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(EPSILON, dtype=dtype, name="norm2")(x)
        y = Mlp(4 * channels, dtype=dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class CSWin(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        stripes: width of the stripes of each stage but the last, which has none.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    heads: tuple[int, ...]
    stripes: tuple[int, ...] = (1, 2, 7)
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(CSWinBlock)
        norm = {"epsilon": EPSILON, "dtype": dtype}
        maps = []
        inits = torch_inits(49 * self.in_chans)
        x = ConvNorm(self.dims[0], 7, 4, 2, **norm, **inits, name="patch_embed")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                inits, name = torch_inits(9 * self.dims[i - 1]), f"downsample_{i}"
                x = ConvNorm(self.dims[i], 3, 2, 1, **norm, **inits, name=name)(x)
            stripe = self.stripes[i] if i + 1 < len(self.dims) else 0
            options = (self.heads[i], stripe, self.conv_implementation)
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = CSWin
HEAD = PooledHead

_HEAD = {"norm_first": True, "epsilon": EPSILON}
_SMALL = {"depths": (2, 4, 32, 2), "dims": (64, 128, 256, 512), "heads": (2, 4, 8, 16)}

# Rates of drop path: README.md of the code.
# fmt: off
VARIANTS = {
    "cswin_tiny": Variant(
        {**_SMALL, "depths": (1, 2, 21, 1)}, _HEAD, 22_320_552, 4_324_203_008, 0.2, top1=82.7),
    "cswin_small": Variant(_SMALL, _HEAD, 34_643_304, 6_800_714_752, 0.4, top1=83.6),
    "cswin_base": Variant(
        {**_SMALL, "dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32)},
        _HEAD, 77_382_184, 14_955_348_480, 0.5, top1=84.2),
}
# fmt: on

DECAY = backbone.DECAY


def _stage_names(stage: int) -> tuple[tuple[str, str], ...]:
    """The code counts stages from 1."""
    ours, theirs = rf"backbone/stage_{stage}_block_0*(\d+)", rf"stage{stage + 1}.\1"
    return (
        (rf"{ours}/(norm\d|qkv|proj)", rf"{theirs}.\2"),
        (rf"{ours}/stripes_(\d)/position", rf"{theirs}.attns.\2.get_v"),
        (rf"{ours}/mlp/(\w+)", rf"{theirs}.mlp.\2"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/patch_embed/conv", r"stage1_conv_embed.0"),
        (r"backbone/patch_embed/norm", r"stage1_conv_embed.2"),
        (r"backbone/downsample_(\d)/(\w+)", r"merge\1.\2"),
        *(rule for stage in range(4) for rule in _stage_names(stage)),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
