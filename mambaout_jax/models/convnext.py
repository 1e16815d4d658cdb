# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt: depthwise convolution and a perceptron over channels, with the layout of Swin.

Paper: Liu et al., "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545; sizes: Section 3.1 there.
Names and epsilon as in github.com/huggingface/pytorch-image-models (timm), and those of the
authors' release, github.com/facebookresearch/ConvNeXt.
"""

import flax.linen as nn
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights


class ConvNeXtBlock(nn.Module):
    """x + gamma · mlp(norm(conv(x))) (Figure 4).

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        y = DepthwiseConv(7, self.conv_implementation, dtype=self.dtype, name="conv")(x)
        y = LayerNorm(dtype=self.dtype, name="norm")(y)
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        y = LayerScale(1e-6, dtype=self.dtype, name="layer_scale")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class ConvNeXt(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
    """

    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(ConvNeXtBlock)
        maps = []
        x = ConvNorm(self.dims[0], 4, 4, dtype=dtype, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                name = f"downsample_{i}"
                x = ConvNorm(self.dims[i], 2, 2, norm_first=True, dtype=dtype, name=name)(x)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(self.conv_implementation, rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = ConvNeXt
HEAD = PooledHead

# Rates of drop path: Table 5.
# fmt: off
VARIANTS = {
    "convnext_tiny": Variant(
        {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
        {}, 28_589_128, 4_455_531_264, 0.1, top1=82.1),
    "convnext_small": Variant(
        {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
        {}, 50_223_688, 8_683_712_256, 0.4, top1=83.1),
    "convnext_base": Variant(
        {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
        {}, 88_591_464, 15_354_729_472, 0.5, top1=83.8),
}
# fmt: on

DECAY = backbone.DECAY

TORCH_NAMES = {
    "timm": (
        (r"backbone/stem/conv", r"stem.0"),
        (r"backbone/stem/norm", r"stem.1"),
        (r"backbone/downsample_(\d)/norm", r"stages.\1.downsample.0"),
        (r"backbone/downsample_(\d)/conv", r"stages.\1.downsample.1"),
        (r"backbone/stage_(\d)_block_0*(\d+)/layer_scale/gamma", r"stages.\1.blocks.\2.gamma"),
        (r"backbone/stage_(\d)_block_0*(\d+)/conv", r"stages.\1.blocks.\2.conv_dw"),
        (r"backbone/stage_(\d)_block_0*(\d+)/norm", r"stages.\1.blocks.\2.norm"),
        (r"backbone/stage_(\d)_block_0*(\d+)/mlp/(\w+)", r"stages.\1.blocks.\2.mlp.\3"),
        (r"head/norm", r"head.norm"),
        (r"head/classifier", r"head.fc"),
    ),
    "official": (
        (r"backbone/stem/conv", r"downsample_layers.0.0"),
        (r"backbone/stem/norm", r"downsample_layers.0.1"),
        (r"backbone/downsample_(\d)/norm", r"downsample_layers.\1.0"),
        (r"backbone/downsample_(\d)/conv", r"downsample_layers.\1.1"),
        (r"backbone/stage_(\d)_block_0*(\d+)/layer_scale/gamma", r"stages.\1.\2.gamma"),
        (r"backbone/stage_(\d)_block_0*(\d+)/conv", r"stages.\1.\2.dwconv"),
        (r"backbone/stage_(\d)_block_0*(\d+)/norm", r"stages.\1.\2.norm"),
        (r"backbone/stage_(\d)_block_0*(\d+)/mlp/fc1", r"stages.\1.\2.pwconv1"),
        (r"backbone/stage_(\d)_block_0*(\d+)/mlp/fc2", r"stages.\1.\2.pwconv2"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
