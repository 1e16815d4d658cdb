# SPDX-License-Identifier: Apache-2.0
"""MobileViTv3: inverted residuals, and transformers over every second pixel of a map.

Paper: Wadekar and Chaurasia, "MobileViTv3: Mobile-Friendly Vision Transformer with Simple and
Effective Fusion of Local, Global and Input Features", arXiv 2209.15159; size: Table 1 there. Names
and epsilon as in MobileViTv3-v1 of github.com/micronDLA/MobileViTv3 at d381beb, whose convolutions
and transformers are those of github.com/apple/ml-cvnets at d38a116.

Maps of an odd number of rows or columns are interpolated to an even one for the transformers, and
back, as there: at 224 pixels this happens in the last stage, at 256, the published size, nowhere.
Dropout is published, drop path is not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import classify
from mambaout_jax.kernels.phases import from_phases, phases
from mambaout_jax.layers.conv_norm import ConvBatchNorm, DepthwiseConvBatchNorm
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.layers.resize import resize_linear
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
_STEM = (16, 32)  # channels of its convolution and of its residual
_EXPANSION = 4  # of inverted residuals
_MOST_HIDDEN = 960  # channels of the head


def conv_norm(
    features: int, side: int, dtype: Dtype | None, name: str, stride: int = 1
) -> ConvBatchNorm:
    """Convolution that keeps the map's size up to the stride, with the published initial values."""
    init = normal_fan_out_init(side**2 * features)
    return ConvBatchNorm(
        features, side, stride, side // 2, dtype=dtype, kernel_init=init, name=name
    )


def depthwise_norm(
    channels: int, implementation: str, dtype: Dtype | None, name: str, stride: int = 1
) -> DepthwiseConvBatchNorm:
    """Depthwise convolution of 3 x 3 taps, with the published initial values."""
    init = normal_fan_out_init(9 * channels)  # as if it had one group
    return DepthwiseConvBatchNorm(
        3, stride, implementation, EPSILON, dtype, kernel_init=init, name=name
    )


class InvertedResidual(nn.Module):
    """reduce(silu(conv(silu(expand(x))))), added to x where both have one shape (MobileNetV2).

    Attributes:
        features: channels that come out.
        stride: of the depthwise convolution.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    stride: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        channels, dtype = x.shape[-1], self.dtype
        hidden = _EXPANSION * channels
        y = jax.nn.silu(conv_norm(hidden, 1, dtype, "expand")(x, train))
        conv = depthwise_norm(hidden, self.conv_implementation, dtype, "conv", self.stride)
        y = jax.nn.silu(conv(y, train))
        y = conv_norm(self.features, 1, dtype, "reduce")(y, train)
        if self.stride > 1 or self.features != channels:
            return y
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class Stem(nn.Module):
    """Images to a map of half their size: a convolution and an inverted residual.

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ C"]:
        x = jax.nn.silu(conv_norm(_STEM[0], 3, self.dtype, "conv", stride=2)(images, train))
        options = (_STEM[1], 1, self.conv_implementation, 0.0, self.dtype)
        return InvertedResidual(*options, name="residual")(x, train)


class TransformerLayer(nn.Module):
    """Pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        heads: heads of the attention.
        dropout: rate, of both branches while training.
        drop_path: probability of dropping each of the two branches of a sequence while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    dropout: float
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], train: bool) -> Float[Array, "B L C"]:
        def added(y, number):
            y = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{number}")(y)
            return DropPath(self.drop_path, name=f"drop_path{number}")(y, train)

        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        y = MultiHeadSelfAttention(self.heads, dtype=self.dtype, name="attention")(y)
        x = x + added(y, 1)
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = Mlp(2 * x.shape[-1], "silu", dtype=self.dtype, name="mlp")(y)
        return x + added(y, 2)


class MobileViTBlock(nn.Module):
    """x + fusion(concat(local(x), global)), where global comes of transformers on local(x).

    The pixels of 2 x 2 patches make four sequences, one for each place in a patch, and attend to
    those of their own sequence only (Figure 1).

    Attributes:
        dim: channels of the transformers.
        heads: heads of their attention.
        dropout: rate, of their branches while training.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: for each of them, probability of dropping its branches while training.
        dtype: dtype of the computation, None to promote.
    """

    dim: int
    heads: int
    dropout: float
    conv_implementation: str
    drop_path: tuple[float, ...]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        (_, H, W, channels), dtype = x.shape, self.dtype
        conv = depthwise_norm(channels, self.conv_implementation, dtype, "local_conv")
        local = jax.nn.silu(conv(x, train))
        init = normal_fan_out_init(self.dim)
        local = Dense(self.dim, False, dtype, init, name="local_proj")(local)

        size = (2 * ((H + 1) // 2), 2 * ((W + 1) // 2))
        maps = phases(resize_linear(local, size), 2)
        y = maps.reshape(maps.shape[0], -1, self.dim)  # (4 B, L, D)
        for i, rate in enumerate(self.drop_path):
            options = (self.heads, self.dropout, rate, dtype)
            y = TransformerLayer(*options, name=f"layer_{i}")(y, train)
        y = LayerNorm(EPSILON, dtype=dtype, name="norm")(y)
        y = resize_linear(from_phases(y.reshape(maps.shape), 2, size), (H, W))

        y = jax.nn.silu(conv_norm(channels, 1, dtype, "global_proj")(y, train))
        y = jnp.concatenate((local, y), axis=-1)
        return x + jax.nn.silu(conv_norm(channels, 1, dtype, "fusion")(y, train))


class MobileViTv3(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        transformer_dims: channels of the transformers of each stage but the first, which is of
            inverted residuals.
        heads: heads of the attention.
        dropout: rate of the transformers' branches while training.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    transformer_dims: tuple[int, ...]
    heads: int = 4
    dropout: float = 0.1
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps of all stages.

        Raises:
            ValueError: there are not as many `transformer_dims` as stages behind the first.
        """
        dtype, conv = self.layer_dtype, self.conv_implementation
        residual, mobile = self.block_class(InvertedResidual), self.block_class(MobileViTBlock)
        first, *others = self.stage_rates
        if len(self.transformer_dims) != len(others):
            raise ValueError(
                f"transformer_dims={self.transformer_dims} must have one entry for each of the "
                f"{len(others)} stages behind the first"
            )
        x = Stem(conv, dtype, name="stem")(images, train)
        for j, rate in enumerate(first):
            options = (self.dims[0], 1 if j else 2, conv, rate, dtype)
            x = residual(*options, name=f"stage_0_block_{j:02d}")(x, train)
        maps = [x]
        for i, (dim, rates) in enumerate(zip(self.transformer_dims, others, strict=True), start=1):
            down = InvertedResidual(self.dims[i], 2, conv, 0.0, dtype, name=f"downsample_{i}")
            options = (dim, self.heads, self.dropout, conv, tuple(rates), dtype)
            x = mobile(*options, name=f"stage_{i}_block_00")(down(x, train), train)
            maps.append(x)
        return Features(tuple(maps))


class MobileViTHead(nn.Module):
    """Hidden layer with batch norm at each pixel, mean over the map, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
        classifier_dropout: rate, before the classifier, while training.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    classifier_dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype, x = compute_dtype(self.dtype), features.maps[-1]
        hidden = min(4 * x.shape[-1], _MOST_HIDDEN)
        x = jax.nn.silu(conv_norm(hidden, 1, dtype, "hidden")(x, train)).mean(axis=(1, 2))  # (B, C)
        x = nn.Dropout(self.classifier_dropout, deterministic=not train, name="dropout")(x)
        return classify(x, self.num_classes, dtype)


BACKBONE = MobileViTv3
HEAD = MobileViTHead

# At the published size of 256 pixels it has 966,618,112 multiply-accumulates.
# fmt: off
VARIANTS = {
    "mobilevitv3_xs": Variant(
        {"depths": (3, 2, 4, 3), "dims": (48, 96, 160, 160), "transformer_dims": (96, 120, 144)},
        {}, 2_490_360, 727_003_552, image_size=256, top1=76.7),
}
# fmt: on

DECAY = backbone.DECAY

_RESIDUAL = {"expand": "exp_1x1", "conv": "conv_3x3", "reduce": "red_1x1"}


def _names_of_stage(i: int) -> tuple[tuple[str, ...], ...]:
    """Those of the stages behind the first."""
    ours, theirs = rf"backbone/stage_{i}_block_00", f"layer_{i + 2}.1"
    layer, global_rep = rf"{ours}/layer_(\d)", rf"{theirs}.global_rep.\1"
    return (
        (rf"{ours}/local_conv/(\w+)", rf"{theirs}.local_rep.conv_3x3.block.\1"),
        (rf"{ours}/local_proj", f"{theirs}.local_rep.conv_1x1.block.conv", "pointwise"),
        (rf"{layer}/norm1", f"{global_rep}.pre_norm_mha.0"),
        (rf"{layer}/attention/qkv", f"{global_rep}.pre_norm_mha.1.qkv_proj"),
        (rf"{layer}/attention/proj", f"{global_rep}.pre_norm_mha.1.out_proj"),
        (rf"{layer}/norm2", f"{global_rep}.pre_norm_ffn.0"),
        (rf"{layer}/mlp/fc1", f"{global_rep}.pre_norm_ffn.1"),
        (rf"{layer}/mlp/fc2", f"{global_rep}.pre_norm_ffn.4"),
        (rf"{ours}/global_proj/(\w+)", rf"{theirs}.conv_proj.block.\1"),
        (rf"{ours}/fusion/(\w+)", rf"{theirs}.fusion.block.\1"),
        *(
            (rf"backbone/downsample_{i}/{our}/(\w+)", rf"layer_{i + 2}.0.block.{their}.block.\1")
            for our, their in _RESIDUAL.items()
        ),
    )


def torch_names(variant: Variant) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The rules of each naming: the norm behind a stage's transformers is numbered as they are."""
    depths = variant.backbone["depths"]
    rules: list[tuple[str, ...]] = [
        (r"backbone/stem/conv/(\w+)", r"conv_1.block.\1"),
        (r"head/hidden/(\w+)", r"conv_1x1_exp.block.\1"),
        (r"head/classifier", r"classifier.fc"),
    ]
    for our, their in _RESIDUAL.items():
        residual = rf"block.{their}.block"
        rules += [
            (rf"backbone/stem/residual/{our}/(\w+)", rf"layer_1.0.{residual}.\1"),
            (rf"backbone/stage_0_block_0*(\d+)/{our}/(\w+)", rf"layer_2.\1.{residual}.\2"),
        ]
    for i in range(1, len(depths)):
        rules += _names_of_stage(i)
        rules.append(
            (rf"backbone/stage_{i}_block_00/norm", f"layer_{i + 2}.1.global_rep.{depths[i]}")
        )
    return {"official": tuple(rules)}


TORCH_NAMES = torch_names

WEIGHTS: dict[str, Weights] = {}
