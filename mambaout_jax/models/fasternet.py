# SPDX-License-Identifier: Apache-2.0
"""FasterNet: convolution of a quarter of the channels, with batch normalisation.

Paper: Chen et al., "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks", CVPR 2023,
arXiv 2303.03667; size: Table 7 there. Names as in github.com/huggingface/pytorch-image-models
(timm).
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import classify
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.conv_norm import ConvBatchNorm
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.published import Weights


class FasterNetBlock(nn.Module):
    """Partial convolution, then a perceptron over all channels (Figure 4).

        x + fc2(gelu(norm(fc1(concat(conv(x₁), x₂)))))    x₁: a quarter of the channels

    Attributes:
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        mixed, rest = jnp.split(x, (channels // 4,), axis=-1)
        conv = Conv(channels // 4, 3, padding=1, use_bias=False, dtype=self.dtype, name="conv")
        y = jnp.concatenate((conv(mixed), rest), axis=-1)
        y = Dense(2 * channels, use_bias=False, dtype=self.dtype, name="fc1")(y)
        y = activation("gelu")(BatchNorm(dtype=self.dtype, name="norm")(y, train))
        y = Dense(channels, use_bias=False, dtype=self.dtype, name="fc2")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class FasterNet(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32."""

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(FasterNetBlock)
        maps = []
        x = ConvBatchNorm(self.dims[0], 4, 4, dtype=dtype, name="patch_embed")(images, train)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                name = f"downsample_{i}"
                x = ConvBatchNorm(self.dims[i], 2, 2, dtype=dtype, name=name)(x, train)
            for j, rate in enumerate(rates):
                x = block(rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


class FasterNetHead(nn.Module):
    """Mean over the last map, hidden layer without bias, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
        hidden: channels of the hidden layer.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    hidden: int = 1280
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = features.maps[-1].mean(axis=(1, 2))  # (B, C)
        x = Dense(self.hidden, use_bias=False, dtype=dtype, name="hidden")(x)
        return classify(activation("gelu")(x), self.num_classes, dtype)


BACKBONE = FasterNet
HEAD = FasterNetHead

# fmt: off
VARIANTS = {
    "fasternet_t1": Variant(
        {"depths": (1, 2, 8, 2), "dims": (64, 128, 256, 512)}, {},
        7_595_368, 850_511_872, 0.02, top1=76.2),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
TORCH_NAMES = {
    "timm": (
        (r"backbone/patch_embed/conv", r"patch_embed.proj"),
        (r"backbone/patch_embed/norm", r"patch_embed.norm"),
        (r"backbone/downsample_(\d)/conv", r"stages.\1.downsample.reduction"),
        (r"backbone/downsample_(\d)/norm", r"stages.\1.downsample.norm"),
        (rf"{_BLOCK}/conv", r"stages.\1.blocks.\2.spatial_mixing.partial_conv3"),
        (rf"{_BLOCK}/fc1", r"stages.\1.blocks.\2.mlp.0", "pointwise"),
        (rf"{_BLOCK}/norm", r"stages.\1.blocks.\2.mlp.1"),
        (rf"{_BLOCK}/fc2", r"stages.\1.blocks.\2.mlp.3", "pointwise"),
        (r"head/hidden", r"conv_head", "pointwise"),
        (r"head/classifier", r"classifier"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
