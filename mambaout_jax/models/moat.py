# SPDX-License-Identifier: Apache-2.0
"""MOAT: inverted residuals, with attention in place of their gates from the third stage on.

Paper: Yang et al., "MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision
Models", ICLR 2023, arXiv 2210.01820; sizes: Table 1 there. Architecture and names:
model/pixel_encoder/moat.py of github.com/google-research/deeplab2 at 64bc1c1.

The release is written in TensorFlow, and so are its checkpoints, which cannot be read here. The
naming "official" has the names of its layers, with convolutions laid out as in PyTorch and the
projections of the attention as in TensorFlow. Padding and epsilons are TensorFlow's, too.

The tables of relative positions are made for images of `table_size`, and interpolated for others.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.mbconv import MBConv, same_padding
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.positions import map_size, relative_bias
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import scaled_dot_product_attention
from mambaout_jax.published import Weights

HEAD_WIDTH = 32
EPSILON = 1e-5  # of layer norms
_BATCH_NORM: dict[str, Any] = {"epsilon": 1e-3, "momentum": 0.01}
_CONV_STAGES = 2  # the first ones
_INITS: Callable[[int], Initializer] = lambda fan_out: normal_init  # noqa: E731
_MBCONV: dict[str, Any] = {**_BATCH_NORM, "even_padding": False, "init_of": _INITS}


class HeadsDense(nn.Module):
    """A linear layer from channels to heads, or from heads to channels.

    Attributes:
        shape: axes of the kernel.
        inputs: how many of them are summed over.
        dtype: dtype of the computation, None to promote.
    """

    shape: tuple[int, ...]
    inputs: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        kernel = self.param("kernel", normal_init, self.shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.shape[self.inputs :], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.tensordot(x, kernel, self.inputs) + bias[None, None]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return inputs[0].shape[0] * inputs[0].shape[1] * math.prod(self.shape)


class MOATAttention(nn.Module):
    """softmax(query keyᵀ / √width + bias[offset of the key]) value, over a whole map.

    Attributes:
        grid: rows and columns of the map that the table of biases is made for.
        head_width: channels of a head, a divisor of the channels.
        dtype: dtype of the computation, None to promote.
    """

    grid: tuple[int, int]
    head_width: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        heads = C // self.head_width
        tokens = x.reshape(B, H * W, C)
        query, key, value = (
            HeadsDense((C, heads, self.head_width), 1, self.dtype, name=name)(tokens).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        shape = (heads, 2 * self.grid[0] - 1, 2 * self.grid[1] - 1)
        table = self.param("relative_position_bias", normal_init, shape, jnp.float32)
        # Its offsets lead from the query to the key, and those of `relative_bias` back.
        table = jnp.asarray(table)[:, ::-1, ::-1].reshape(heads, -1).T
        bias = relative_bias(table, self.grid, (H, W))
        y = scaled_dot_product_attention(query, key, value, bias=bias).swapaxes(1, 2)
        y = HeadsDense((heads, self.head_width, C), 2, self.dtype, name="proj")(y)
        return y.reshape(x.shape)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 2 * output.size * output.shape[1] * output.shape[2]


class MOATBlock(nn.Module):
    """x = mbconv(x);  x + attention(norm(x)) (Figure 1).

    Attributes:
        features: channels that come out.
        stride: see `MBConv`.
        grid, head_width: see `MOATAttention`.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    stride: int
    grid: tuple[int, int]
    head_width: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        options = (self.features, self.stride, False, self.drop_path, self.dtype)
        conv = {**_MBCONV, "conv_implementation": self.conv_implementation}
        x = MBConv(*options, **conv, name="mbconv")(x, train)
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        y = MOATAttention(self.grid, self.head_width, self.dtype, name="attention")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class MOAT(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        stem: channels of the stem.
        head_width: channels of a head of the attention.
        table_size: side or (height, width) in pixels that the tables of positions are made for.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    stem: int = 64
    head_width: int = HEAD_WIDTH
    table_size: int | tuple[int, int] = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        conv_block, attention_block = map(self.block_class, (MBConv, MOATBlock))
        mbconv, maps = {**_MBCONV, "conv_implementation": self.conv_implementation}, []
        _, H, W, _ = jnp.shape(images)
        padded = jnp.pad(images, ((0, 0), same_padding(H), same_padding(W), (0, 0)))
        x = Conv(self.stem, 3, 2, dtype=dtype, name="stem_conv0")(padded)
        x = activation("gelu")(BatchNorm(**_BATCH_NORM, dtype=dtype, name="stem_norm0")(x, train))
        x = Conv(self.stem, 3, 1, 1, dtype=dtype, name="stem_conv1")(x)
        for i, rates in enumerate(self.stage_rates):
            dim = self.dims[i]
            for j, rate in enumerate(rates):
                stride, name = (1 if j else 2), f"stage_{i}_block_{j:02d}"
                if i < _CONV_STAGES:
                    options = (dim, stride, True, rate, dtype)
                    x = conv_block(*options, **mbconv, name=name)(x, train)
                else:
                    grid = map_size(self.table_size, self.strides[i])
                    sizes = (dim, stride, grid, self.head_width)
                    options = (*sizes, self.conv_implementation, rate, dtype)
                    x = attention_block(*options, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = MOAT
HEAD = PooledHead

_HEAD = {"epsilon": EPSILON}

# The code's rates are those of the paper's appendix times the block's number over the number of
# blocks, which the last of them, counted from 0, does not reach. Counted by fvcore there are 1.8 %
# more multiply-accumulates: the code reads its tables of positions by products with zeros and ones.
# fmt: off
VARIANTS = {
    "moat_0": Variant(
        {"depths": (2, 3, 7, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 27_846_892, 5_638_149_120, 0.2 * 13 / 14, top1=83.3),
    "moat_2": Variant(
        {"depths": (2, 6, 14, 2), "dims": (128, 256, 512, 1024), "stem": 128},
        _HEAD, 73_422_408, 17_045_458_944, 0.5 * 23 / 24, top1=84.7),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/relative_position_bias$", False))


_BLOCK = r"backbone/stage_(\d)_block_(\d+)"
_MB = rf"{_BLOCK}(?:/mbconv)?"
_THEIRS = r"block_0\1_\2"
TORCH_NAMES = {
    "official": (
        (r"backbone/stem_(conv|norm)(\d)", r"_stem.\1_\2"),
        (rf"{_BLOCK}/attention/(relative_position)_bias", rf"{_THEIRS}._attention.\3_embedding"),
        (rf"{_BLOCK}/attention/([qkv])\w+", rf"{_THEIRS}._attention._\3_proj", "unchanged"),
        (rf"{_BLOCK}/attention/proj", rf"{_THEIRS}._attention._o_proj", "unchanged"),
        (r"backbone/stage_([23])_block_(\d+)/norm", rf"{_THEIRS}._attention_norm"),
        (rf"{_MB}/norm", rf"{_THEIRS}._pre_norm"),
        (rf"{_MB}/(shortcut|expand|shrink)", rf"{_THEIRS}._\3_conv", "pointwise"),
        (rf"{_MB}/(expand)_norm", rf"{_THEIRS}._\3_norm"),
        (rf"{_MB}/conv", rf"{_THEIRS}._depthwise_conv"),
        (rf"{_MB}/conv_norm", rf"{_THEIRS}._depthwise_norm"),
        (rf"{_BLOCK}/se/(reduce|expand)", rf"{_THEIRS}._se._se_\3", "pointwise"),
        (r"head/norm", r"_final_layer_norm"),
        (r"head/classifier", r"_logits_head", "pointwise"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
