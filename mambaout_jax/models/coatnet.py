# SPDX-License-Identifier: Apache-2.0
"""CoAtNet: two stages of inverted residuals, two of attention with relative positions.

Paper: Dai et al., "CoAtNet: Marrying Convolution and Attention for All Data Sizes", NeurIPS 2021,
arXiv 2106.04803; sizes: Table 3 there. Names as in github.com/huggingface/pytorch-image-models
(timm), timm/models/maxxvit.py.

    coatnet_*_224            the stride of an inverted residual is its convolution's, as timm has it
    coatnet_*_224_stride1x1  its first linear layer's, as in the paper; that has the paper's MACs

Both have the same parameters. Weights of timm's `_rw_` models are of another architecture.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.downsample import mean_pool
from mambaout_jax.layers.initializers import normal_fan_out_init, normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mbconv import MBConv
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.positions import map_size, relative_bias
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import from_heads, scaled_dot_product_attention
from mambaout_jax.published import Weights

HEAD_WIDTH = 32
_CONV_STAGES = 2  # the first ones
_XAVIER = nn.initializers.xavier_uniform()


class RelativeAttention(nn.Module):
    """softmax(query keyᵀ / √width + bias[offset of the key]) value, over a whole map (Eq. 3).

    Attributes:
        features: channels that come out, and those of the heads together.
        grid: rows and columns of the map that the table of biases is made for.
        head_width: channels of a head, a divisor of `features`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    grid: tuple[int, int]
    head_width: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        (B, H, W, _), dtype = x.shape, self.dtype
        heads = self.features // self.head_width
        qkv = Dense(3 * self.features, dtype=dtype, kernel_init=_XAVIER, name="qkv")(x)
        parts = qkv.reshape(B, H * W, heads, 3, self.head_width)
        query, key, value = jnp.moveaxis(parts, (3, 2), (0, 2))  # each (B, heads, L, width)
        shape = ((2 * self.grid[0] - 1) * (2 * self.grid[1] - 1), heads)
        table = self.param("relative_position_bias", normal_init, shape, jnp.float32)
        bias = relative_bias(table, self.grid, (H, W))
        y = from_heads(scaled_dot_product_attention(query, key, value, bias=bias))
        y = y.reshape(B, H, W, self.features)
        return Dense(self.features, dtype=dtype, kernel_init=_XAVIER, name="proj")(y)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 2 * output.size * output.shape[1] * output.shape[2]


class TransformerBlock(nn.Module):
    """Pre-norm transformer block, with 2 x 2 means in front of the first of a stage.

        x = shortcut(x) + attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        features, grid, head_width: see `RelativeAttention`.
        stride: 1, or 2 for means.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    stride: int
    grid: tuple[int, int]
    head_width: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        features, dtype = self.features, self.dtype
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        if self.stride == 2:
            x, y = mean_pool(x), mean_pool(y)
        if x.shape[-1] != features:
            x = Dense(features, dtype=dtype, kernel_init=_XAVIER, name="shortcut")(x)
        y = RelativeAttention(features, self.grid, self.head_width, dtype, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y = Mlp(
            4 * features,
            dtype=dtype,
            kernel_init=_XAVIER,
            bias_init=nn.initializers.normal(1e-6),
            name="mlp",
        )(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class CoAtNet(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        stem: channels of the stem.
        stride_first: see `layers.mbconv.MBConv`.
        head_width: channels of a head of the attention.
        table_size: side or (height, width) in pixels of the images that the tables of relative
            positions are made for; for others they are interpolated.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    stem: int = 64
    stride_first: bool = False
    head_width: int = HEAD_WIDTH
    table_size: int | tuple[int, int] = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        conv_block, attention_block = map(self.block_class, (MBConv, TransformerBlock))
        maps = []
        init = normal_fan_out_init(9 * self.stem)
        conv = {"use_bias": False, "dtype": dtype, "kernel_init": init}
        x = Conv(self.stem, 3, 2, 1, **conv, name="stem_conv1")(images)
        x = activation("gelu")(BatchNorm(dtype=dtype, name="stem_norm1")(x, train))
        x = Conv(self.stem, 3, 1, 1, **conv, name="stem_conv2")(x)
        for i, rates in enumerate(self.stage_rates):
            dim, grid = self.dims[i], map_size(self.table_size, self.strides[i])
            for j, rate in enumerate(rates):
                stride, name = (1 if j else 2), f"stage_{i}_block_{j:02d}"
                if i < _CONV_STAGES:
                    x = conv_block(
                        dim,
                        stride,
                        True,
                        rate,
                        dtype,
                        stride_first=self.stride_first,
                        conv_implementation=self.conv_implementation,
                        name=name,
                    )(x, train)
                else:
                    options = (dim, stride, grid, self.head_width, rate, dtype)
                    x = attention_block(*options, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = CoAtNet
HEAD = HiddenHead

_HEAD = {"hidden_ratio": 1, "hidden_activation": "tanh", "hidden_norm": False, "torch_init": True}
_0 = {"depths": (2, 3, 5, 2), "dims": (96, 192, 384, 768)}
_1 = {"depths": (2, 6, 14, 2), "dims": (96, 192, 384, 768)}
_2 = {"depths": (2, 6, 14, 2), "dims": (128, 256, 512, 1024), "stem": 128}
_FIRST = {"stride_first": True}

# Rates of drop path: Appendix A.2 of the paper.
# fmt: off
VARIANTS = {
    "coatnet_0_224": Variant(_0, _HEAD, 25_036_820, 4_546_507_776, 0.2),
    "coatnet_1_224": Variant(_1, _HEAD, 42_225_776, 8_643_499_008, 0.3),
    "coatnet_2_224": Variant(_2, _HEAD, 74_684_744, 16_427_134_976, 0.5),
    "coatnet_0_224_stride1x1": Variant(
        {**_0, **_FIRST}, _HEAD, 25_036_820, 4_141_888_512, 0.2, top1=81.6),
    "coatnet_1_224_stride1x1": Variant(
        {**_1, **_FIRST}, _HEAD, 42_225_776, 8_238_879_744, 0.3, top1=83.3),
    "coatnet_2_224_stride1x1": Variant(
        {**_2, **_FIRST}, _HEAD, 74_684_744, 15_502_290_944, 0.5, top1=84.1),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/relative_position_bias$", False))


_CONV = r"backbone/stage_([01])_block_0*(\d+)"
_ANY = r"backbone/stage_(\d)_block_0*(\d+)"
_ATTENTION = r"backbone/stage_([23])_block_0*(\d+)"
_BLOCK = r"stages.\1.blocks.\2"
TORCH_NAMES = {
    "timm": (
        (r"backbone/stem_(\w+)", r"stem.\1"),
        (rf"{_CONV}/norm", rf"{_BLOCK}.pre_norm"),
        (rf"{_CONV}/expand", rf"{_BLOCK}.conv1_1x1", "pointwise"),
        (rf"{_CONV}/expand_norm", rf"{_BLOCK}.norm1"),
        (rf"{_CONV}/conv", rf"{_BLOCK}.conv2_kxk"),
        (rf"{_CONV}/conv_norm", rf"{_BLOCK}.norm2"),
        (rf"{_CONV}/se/reduce", rf"{_BLOCK}.se.fc1", "pointwise"),
        (rf"{_CONV}/se/expand", rf"{_BLOCK}.se.fc2", "pointwise"),
        (rf"{_CONV}/shrink", rf"{_BLOCK}.conv3_1x1", "pointwise"),
        (rf"{_ANY}/shortcut", rf"{_BLOCK}.shortcut.expand", "pointwise"),
        (r"backbone/stage_([23])_block_00/norm1", r"stages.\1.blocks.0.norm1.norm"),
        (rf"{_ATTENTION}/(norm\d)", rf"{_BLOCK}.\3"),
        (
            rf"{_ATTENTION}/attention/relative_position_bias",
            rf"{_BLOCK}.attn.rel_pos.relative_position_bias_table",
        ),
        (rf"{_ATTENTION}/attention/(qkv|proj)", rf"{_BLOCK}.attn.\3", "pointwise"),
        (rf"{_ATTENTION}/mlp/(fc\d)", rf"{_BLOCK}.mlp.\3", "pointwise"),
        (r"head/norm", r"head.norm"),
        (r"head/hidden", r"head.pre_logits.fc"),
        (r"head/classifier", r"head.fc"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
