# SPDX-License-Identifier: Apache-2.0
"""MogaNet: gated convolutions of several dilations, and perceptrons that gather over channels.

Paper: Li et al., "MogaNet: Multi-order Gated Aggregation Network", ICLR 2024, arXiv 2211.03295.
Sizes, names and initial values: github.com/Westlake-AI/MogaNet at 386b548.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant, closing_norm
from mambaout_jax.heads.classifier import MeanHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.conv_norm import ConvBatchNorm
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights, released_weights

_SCALE = 1e-5  # initial value of every learned scale


def _dense(features: int, dtype: Dtype | None, name: str) -> Dense:
    init = normal_fan_out_init(features)
    return Dense(features, dtype=dtype, kernel_init=init, name=name)


def _conv(side: int, implementation: str, dtype: Dtype | None, dilation: int, name: str):
    return DepthwiseConv(
        side,
        implementation,
        dtype=dtype,
        dilation=dilation,
        kernel_init=normal_fan_out_init(side**2),
        name=name,
    )


class MultiOrderConv(nn.Module):
    """mix(concat(y₀, conv1(y₁), conv2(y₂))) of 1, 3 and 4 eighths of y = conv0(x).

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, options = x.shape[-1], (self.conv_implementation, self.dtype)
        y = _conv(5, *options, 1, "conv0")(x)
        middle, last = channels * 3 // 8, channels // 2
        first = channels - middle - last
        parts = jnp.split(y, (first, first + middle), axis=-1)
        parts[1] = _conv(5, *options, 2, "conv1")(parts[1])
        parts[2] = _conv(7, *options, 3, "conv2")(parts[2])
        return _dense(channels, self.dtype, "mix")(jnp.concatenate(parts, axis=-1))


class GatedAggregation(nn.Module):
    """x + proj2(silu(gate(z)) · silu(value(z))),  z = silu(y + s · (y - mean(y))),  y = proj1(x).

    The mean is that of a channel over the map.

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        y = _dense(channels, dtype, "proj1")(x)
        apart = y - y.mean(axis=(1, 2), keepdims=True)
        z = jax.nn.silu(y + LayerScale(_SCALE, dtype, name="scale")(apart))
        gate = _dense(channels, dtype, "gate")(z)
        value = MultiOrderConv(self.conv_implementation, dtype, name="value")(z)
        return x + _dense(channels, dtype, "proj2")(jax.nn.silu(gate) * jax.nn.silu(value))


class AggregatingMlp(nn.Module):
    """fc2(y + s · (y - gelu(gather(y)))),  y = gelu(conv(fc1(x))); gather makes one channel.

    Attributes:
        hidden: channels in between.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    hidden: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        dtype, gelu = self.dtype, activation("gelu")
        y = _dense(self.hidden, dtype, "fc1")(x)
        y = gelu(_conv(3, self.conv_implementation, dtype, 1, "conv")(y))
        apart = y - gelu(_dense(1, dtype, "gather")(y))
        y = y + LayerScale(_SCALE, dtype, name="scale")(apart)
        return _dense(x.shape[-1], dtype, "fc2")(y)


class MogaBlock(nn.Module):
    """x = x + gamma1 · aggregation(norm1(x)), then x + gamma2 · mlp(norm2(x)); batch norms.

    Attributes:
        mlp_ratio: width of the perceptron over that of the block.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    mlp_ratio: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype, hidden = self.dtype, self.mlp_ratio * x.shape[-1]
        y = BatchNorm(dtype=dtype, name="norm1")(x, train)
        y = GatedAggregation(self.conv_implementation, dtype, name="aggregation")(y)
        y = LayerScale(_SCALE, dtype=dtype, name="layer_scale1")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = BatchNorm(dtype=dtype, name="norm2")(x, train)
        y = AggregatingMlp(hidden, self.conv_implementation, dtype, name="mlp")(y)
        y = LayerScale(_SCALE, dtype=dtype, name="layer_scale2")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class MogaStem(nn.Module):
    """norm2(conv2(gelu(norm1(conv1(images))))): a map of a quarter of the images' size.

    Attributes:
        features: channels of the map; the first convolution makes half of them.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ F"]:
        x = halve(self.features // 2, self.dtype, "first")(images, train)
        return halve(self.features, self.dtype, "second")(activation("gelu")(x), train)


def halve(features: int, dtype: Dtype | None, name: str) -> ConvBatchNorm:
    """Convolution of 3 x 3 pixels and of stride 2, with a bias, and its batch norm."""
    init = normal_fan_out_init(3**2 * features)
    return ConvBatchNorm(features, 3, 2, 1, use_bias=True, dtype=dtype, kernel_init=init, name=name)


class MogaNet(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32, each behind the norm of its stage.

    Attributes:
        mlp_ratios: width of the perceptrons of each stage over that of their block.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(MogaBlock)
        maps = []
        x = MogaStem(self.dims[0], dtype, name="stem")(images, train)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = halve(self.dims[i], dtype, f"downsample_{i}")(x, train)
            options = (self.mlp_ratios[i], self.conv_implementation)
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            x = BatchNorm(dtype=dtype, name=closing_norm(i, len(self.dims)))(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = MogaNet
HEAD = MeanHead

# fmt: off
VARIANTS = {
    "moganet_tiny": Variant(
        {"depths": (3, 3, 12, 2), "dims": (32, 64, 128, 256)},
        {}, 5_197_332, 1_083_283_008, 0.1, top1=79.0),
    "moganet_small": Variant(
        {"depths": (2, 3, 12, 2), "dims": (64, 128, 320, 512)},
        {}, 25_335_675, 4_931_320_064, 0.1, top1=83.4),
    "moganet_base": Variant(
        {"depths": (4, 6, 22, 3), "dims": (64, 160, 320, 512)},
        {}, 43_720_475, 9_860_923_904, 0.2, top1=84.3),
    "moganet_large": Variant(
        {"depths": (4, 6, 44, 4), "dims": (64, 160, 320, 640)},
        {}, 82_480_978, 15_820_050_880, 0.3, top1=84.7),
}
# fmt: on

DECAY = backbone.DECAY


def _stage_names(i: int) -> tuple[tuple[str, ...], ...]:
    """Rules of stage `i`, which is the authors' stage `i + 1`."""
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"blocks{i + 1}.\1"
    mixer, value = rf"{block}/aggregation", rf"{theirs}.attn.value"
    return (
        (rf"backbone/downsample_{i}/conv", f"patch_embed{i + 1}.projection"),
        (rf"backbone/downsample_{i}/norm", f"patch_embed{i + 1}.norm"),
        (rf"{block}/layer_scale(\d)/gamma", rf"{theirs}.layer_scale_\2", "map"),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{mixer}/scale/gamma", rf"{theirs}.attn.sigma.scale", "map"),
        (rf"{mixer}/proj(\d)", rf"{theirs}.attn.proj_\2", "pointwise"),
        (rf"{mixer}/gate", rf"{theirs}.attn.gate", "pointwise"),
        (rf"{mixer}/value/conv(\d)", rf"{value}.DW_conv\2"),
        (rf"{mixer}/value/mix", rf"{value}.PW_conv", "pointwise"),
        (rf"{block}/mlp/scale/gamma", rf"{theirs}.mlp.sigma.scale", "map"),
        (rf"{block}/mlp/(fc\d)", rf"{theirs}.mlp.\2", "pointwise"),
        (rf"{block}/mlp/conv", rf"{theirs}.mlp.dwconv"),
        (rf"{block}/mlp/gather", rf"{theirs}.mlp.decompose", "pointwise"),
        (rf"backbone/{closing_norm(i, 4)}", f"norm{i + 1}"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/stem/first/conv", "patch_embed1.projection.0"),
        (r"backbone/stem/first/norm", "patch_embed1.projection.1"),
        (r"backbone/stem/second/conv", "patch_embed1.projection.3"),
        (r"backbone/stem/second/norm", "patch_embed1.projection.4"),
        *(rule for i in range(4) for rule in _stage_names(i)),
        (r"head/classifier", "head"),
    )
}


def _released(model: str, batch: int, top5: float) -> tuple[str, Weights]:
    folder = "https://github.com/Westlake-AI/MogaNet/releases/download/moganet-in1k-weights"
    url = f"{folder}/{model}_sz224_8xbs{batch}_ep300.pth.tar"
    result = (224, 0.9, VARIANTS[model].top1, top5)
    return released_weights(model, url, "Apache-2.0", result, crop_fraction=0.9)


# README.md of the release; the licence is that of the code.
# fmt: off
WEIGHTS = dict((
    _released("moganet_tiny", 128, 94.6),
    _released("moganet_small", 128, 96.9),
    _released("moganet_base", 128, 97.0),
    _released("moganet_large", 64, 97.1),
))
# fmt: on
