# SPDX-License-Identifier: Apache-2.0
"""VAN: attention by a large kernel, which a small, a dilated and a pointwise convolution make up.

Paper: Guo et al., "Visual Attention Network", Computational Visual Media 2023, arXiv 2202.09741.
Sizes, names, initial values and epsilon: github.com/Visual-Attention-Network/VAN-Classification at
e19779b.
"""

import flax.linen as nn
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
from mambaout_jax.layers.mlp import ConvMlp
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights


class LargeKernelAttention(nn.Module):
    """x + proj2(u · mix(dilated(conv(u)))),  u = gelu(proj1(x)) (Figure 3).

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        pointwise = normal_fan_out_init(channels)
        small, large = normal_fan_out_init(5 * 5), normal_fan_out_init(7 * 7)
        conv = {"implementation": self.conv_implementation, "dtype": dtype}

        u = Dense(channels, dtype=dtype, kernel_init=pointwise, name="proj1")(x)
        u = activation("gelu")(u)
        y = DepthwiseConv(5, **conv, kernel_init=small, name="conv")(u)
        y = DepthwiseConv(7, **conv, dilation=3, kernel_init=large, name="dilated")(y)
        y = Dense(channels, dtype=dtype, kernel_init=pointwise, name="mix")(y)
        return x + Dense(channels, dtype=dtype, kernel_init=pointwise, name="proj2")(u * y)


class VANBlock(nn.Module):
    """x = x + gamma1 · attention(norm1(x)), then x + gamma2 · mlp(norm2(x)); batch norms.

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
        dtype = self.dtype
        y = BatchNorm(dtype=dtype, name="norm1")(x, train)
        y = LargeKernelAttention(self.conv_implementation, dtype, name="attention")(y)
        y = LayerScale(1e-2, dtype=dtype, name="layer_scale1")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = BatchNorm(dtype=dtype, name="norm2")(x, train)
        hidden = self.mlp_ratio * x.shape[-1]
        y = ConvMlp(hidden, self.conv_implementation, dtype, normal_fan_out_init, name="mlp")(y)
        y = LayerScale(1e-2, dtype=dtype, name="layer_scale2")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class VAN(Pyramid):
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
        block = self.block_class(VANBlock)
        maps = []
        x = images
        for i, rates in enumerate(self.stage_rates):
            side, stride = (3, 2) if i else (7, 4)
            x = ConvBatchNorm(
                self.dims[i],
                side,
                stride,
                side // 2,
                use_bias=True,
                dtype=dtype,
                kernel_init=normal_fan_out_init(side**2 * self.dims[i]),
                name=f"downsample_{i}" if i else "patch_embed",
            )(x, train)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(self.mlp_ratios[i], self.conv_implementation, rate, dtype, name=name)(
                    x, train
                )
            x = LayerNorm(dtype=dtype, name=closing_norm(i, len(self.dims)))(x)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = VAN
HEAD = MeanHead

# fmt: off
VARIANTS = {
    "van_b0": Variant(
        {"depths": (3, 3, 5, 2), "dims": (32, 64, 160, 256)},
        {}, 4_105_800, 864_224_000, 0.1, top1=75.4),
    "van_b2": Variant(
        {"depths": (3, 3, 12, 3), "dims": (64, 128, 320, 512)},
        {}, 26_578_472, 4_992_773_120, 0.1, top1=82.8),
    "van_b3": Variant(
        {"depths": (3, 5, 27, 3), "dims": (64, 128, 320, 512)},
        {}, 44_765_608, 8_925_292_032, 0.2, top1=83.9),
}
# fmt: on

DECAY = backbone.DECAY


def _stage_names(i: int) -> tuple[tuple[str, ...], ...]:
    """Rules of stage `i`, which is the authors' stage `i + 1`."""
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"block{i + 1}.\1"
    gate = rf"{theirs}.attn.spatial_gating_unit"
    return (
        (rf"backbone/{f'downsample_{i}' if i else 'patch_embed'}/conv", f"patch_embed{i + 1}.proj"),
        (rf"backbone/{f'downsample_{i}' if i else 'patch_embed'}/norm", f"patch_embed{i + 1}.norm"),
        (rf"{block}/layer_scale(\d)/gamma", rf"{theirs}.layer_scale_\2"),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/attention/proj(\d)", rf"{theirs}.attn.proj_\2", "pointwise"),
        (rf"{block}/attention/conv", rf"{gate}.conv0"),
        (rf"{block}/attention/dilated", rf"{gate}.conv_spatial"),
        (rf"{block}/attention/mix", rf"{gate}.conv1", "pointwise"),
        (rf"{block}/mlp/(fc\d)", rf"{theirs}.mlp.\2", "pointwise"),
        (rf"{block}/mlp/conv", rf"{theirs}.mlp.dwconv.dwconv"),
        (rf"backbone/{closing_norm(i, 4)}", f"norm{i + 1}"),
    )


TORCH_NAMES = {
    "official": (
        *(rule for i in range(4) for rule in _stage_names(i)),
        (r"head/classifier", "head"),
    )
}

WEIGHTS: dict[str, Weights] = {}
