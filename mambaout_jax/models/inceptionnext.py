# SPDX-License-Identifier: Apache-2.0
"""InceptionNeXt: ConvNeXt whose large kernel is a small square, a row, a column and nothing.

Paper: Yu et al., "InceptionNeXt: When Inception Meets ConvNeXt", CVPR 2024, arXiv 2303.16900.
Sizes and names: github.com/sail-sg/inceptionnext at 3f9769c; the names are those of
github.com/huggingface/pytorch-image-models (timm), too.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.conv_norm import ConvBatchNorm
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights, released_weights


class InceptionConv(nn.Module):
    """concat(x₀, square(x₁), row(x₂), column(x₃)) of parts of the channels.

    Attributes:
        branch_ratio: channels of each of the three convolutions over those of the map.
        band_size: length of the row and of the column.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    branch_ratio: float
    band_size: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        branch, band = int(self.branch_ratio * x.shape[-1]), self.band_size
        first = x.shape[-1] - 3 * branch
        parts = jnp.split(x, (first, first + branch, first + 2 * branch), axis=-1)
        conv = {"implementation": self.conv_implementation, "dtype": self.dtype}
        return jnp.concatenate(
            (
                parts[0],
                DepthwiseConv(3, **conv, name="square")(parts[1]),
                DepthwiseConv((1, band), **conv, name="row")(parts[2]),
                DepthwiseConv((band, 1), **conv, name="column")(parts[3]),
            ),
            axis=-1,
        )


class InceptionNeXtBlock(nn.Module):
    """x + gamma · mlp(norm(mixer(x))) (Figure 2), batch norm.

    Attributes:
        branch_ratio, band_size, conv_implementation: see `InceptionConv`.
        mlp_ratio: width of the perceptron over that of the block.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    branch_ratio: float
    band_size: int
    conv_implementation: str
    mlp_ratio: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        mixer = (self.branch_ratio, self.band_size, self.conv_implementation, dtype)
        y = InceptionConv(*mixer, name="mixer")(x)
        y = BatchNorm(dtype=dtype, name="norm")(y, train)
        y = Mlp(self.mlp_ratio * x.shape[-1], dtype=dtype, name="mlp")(y)
        y = LayerScale(1e-6, dtype=dtype, name="layer_scale")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class NormConv(nn.Module):
    """Batch norm, convolution of 2 x 2 pixels that do not overlap.

    Attributes:
        features: channels that come out.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train)
        return Conv(self.features, 2, 2, dtype=self.dtype, name="conv")(x)


class InceptionNeXt(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        branch_ratio, band_size: see `InceptionConv`.
        mlp_ratios: width of the perceptrons of each stage over that of their block.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    branch_ratio: float = 0.125
    band_size: int = 11
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 3)
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(InceptionNeXtBlock)
        mixer = (self.branch_ratio, self.band_size, self.conv_implementation)
        maps = []
        x = ConvBatchNorm(self.dims[0], 4, 4, use_bias=True, dtype=dtype, name="stem")(
            images, train
        )
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = NormConv(self.dims[i], dtype, name=f"downsample_{i}")(x, train)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(*mixer, self.mlp_ratios[i], rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = InceptionNeXt
HEAD = HiddenHead

_HEAD = {"norm": False, "hidden_ratio": 3}

# fmt: off
VARIANTS = {
    "inception_next_atto": Variant(
        {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "branch_ratio": 0.25, "band_size": 9},
        _HEAD, 4_156_520, 503_035_040, 0.1, top1=75.3),
    "inception_next_tiny": Variant(
        {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
        _HEAD, 28_055_680, 4_188_634_272, 0.1, top1=82.3),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_THEIRS = r"stages.\1.blocks.\2"
TORCH_NAMES = {
    "timm": (
        (r"backbone/stem/conv", r"stem.0"),
        (r"backbone/stem/norm", r"stem.1"),
        (r"backbone/downsample_(\d)/norm", r"stages.\1.downsample.0"),
        (r"backbone/downsample_(\d)/conv", r"stages.\1.downsample.1"),
        (rf"{_BLOCK}/layer_scale/gamma", rf"{_THEIRS}.gamma"),
        (rf"{_BLOCK}/mixer/square", rf"{_THEIRS}.token_mixer.dwconv_hw"),
        (rf"{_BLOCK}/mixer/row", rf"{_THEIRS}.token_mixer.dwconv_w"),
        (rf"{_BLOCK}/mixer/column", rf"{_THEIRS}.token_mixer.dwconv_h"),
        (rf"{_BLOCK}/norm", rf"{_THEIRS}.norm"),
        (rf"{_BLOCK}/mlp/(\w+)", rf"{_THEIRS}.mlp.\3", "pointwise"),
        (r"head/hidden", r"head.fc1"),
        (r"head/hidden_norm", r"head.norm"),
        (r"head/classifier", r"head.fc2"),
    ),
}


def _released(model: str) -> tuple[str, Weights]:
    file = f"{model.replace('_next', 'next')}.pth"
    url = f"https://github.com/sail-sg/inceptionnext/releases/download/model/{file}"
    result = (224, 0.875, VARIANTS[model].top1)
    return released_weights(model, url, "Apache-2.0", result, naming="timm", crop_fraction=0.875)


# README.md of the release, with these accuracies; the licence is that of the code.
WEIGHTS = dict(map(_released, VARIANTS))
