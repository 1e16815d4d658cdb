# SPDX-License-Identifier: Apache-2.0
"""PVTv2: attention to a map made smaller by a convolution, and a convolution in the perceptron.

Paper: Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", Computational
Visual Media 2022, arXiv 2106.13797; size: Table 1 there. Names as in
github.com/huggingface/pytorch-image-models (timm), and those of the authors' release,
github.com/whai362/PVT, classification/pvt_v2.py.

Where the side of a map is no multiple of the reduction, its last rows and columns are queries and
no keys, as in PyTorch.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant, closing_norm
from mambaout_jax.heads.classifier import MeanHead
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import ConvMlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import from_heads, scaled_dot_product_attention, to_heads
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of the norms behind convolutions; the others have 1e-6


class ReducedAttention(nn.Module):
    """Every token looks at the tokens of a smaller map ("spatial reduction attention").

    Attributes:
        heads: number of heads, a divisor of the channels.
        reduction: by how much the map is smaller along each axis.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        C, dtype, step = x.shape[-1], self.dtype, self.reduction
        small = x
        if step > 1:
            init = normal_fan_out_init(step**2 * C)
            norm = {"epsilon": EPSILON, "dtype": dtype, "kernel_init": init}
            small = ConvNorm(C, step, step, **norm, name="reduce")(x)
        query = Dense(C, dtype=dtype, name="query")(x)
        key, value = jnp.split(Dense(2 * C, dtype=dtype, name="key_value")(small), 2, axis=-1)
        query, key, value = (
            to_heads(part.reshape(part.shape[0], -1, C), self.heads) for part in (query, key, value)
        )
        y = from_heads(scaled_dot_product_attention(query, key, value))
        return Dense(C, dtype=dtype, name="proj")(y.reshape(x.shape))

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        _, H, W, _ = output.shape
        keys = (H // self.reduction) * (W // self.reduction)
        return 2 * output.size * keys


class PVTv2Block(nn.Module):
    """Pre-norm transformer block.

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        heads, reduction: see `ReducedAttention`.
        mlp_ratio: width of the perceptron over that of the block.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    mlp_ratio: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        y = ReducedAttention(self.heads, self.reduction, dtype, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y = ConvMlp(self.mlp_ratio * x.shape[-1], self.conv_implementation, dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class PVTv2(Pyramid):
    """Backbone of four stages: normalised maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        reductions: by how much the map that is attended to is smaller, by stage.
        mlp_ratios: widths of the perceptrons over those of their blocks, by stage.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    heads: tuple[int, ...]
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(PVTv2Block)
        maps = []
        x = images
        for i, rates in enumerate(self.stage_rates):
            window, name = ((3, 2, 1), f"downsample_{i}") if i else ((7, 4, 3), "patch_embed")
            init = normal_fan_out_init(window[0] ** 2 * self.dims[i])
            norm = {"epsilon": EPSILON, "dtype": dtype, "kernel_init": init}
            x = ConvNorm(self.dims[i], *window, **norm, name=name)(x)
            options = (self.heads[i], self.reductions[i], self.mlp_ratios[i])
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(*options, self.conv_implementation, rate, dtype, name=name)(x, train)
            x = LayerNorm(dtype=dtype, name=closing_norm(i, len(self.dims)))(x)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = PVTv2
HEAD = MeanHead

# fmt: off
VARIANTS = {
    "pvt_v2_b0": Variant(
        {"depths": (2, 2, 2, 2), "dims": (32, 64, 160, 256), "heads": (1, 2, 5, 8)}, {},
        3_666_760, 566_065_664, 0.1, top1=70.5),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"


def _block_names(ours: str, theirs: str, conv: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"{ours}/(?P<part>norm\d)", rf"{theirs}.\g<part>"),
        (rf"{ours}/attention/query", rf"{theirs}.attn.q"),
        (rf"{ours}/attention/key_value", rf"{theirs}.attn.kv"),
        (rf"{ours}/attention/reduce/conv", rf"{theirs}.attn.sr"),
        (rf"{ours}/attention/reduce/norm", rf"{theirs}.attn.norm"),
        (rf"{ours}/attention/proj", rf"{theirs}.attn.proj"),
        (rf"{ours}/mlp/(?P<part>fc\d)", rf"{theirs}.mlp.\g<part>"),
        (rf"{ours}/mlp/conv", rf"{theirs}.mlp.{conv}"),
    )


def _official_stage_names(stage: int) -> tuple[tuple[str, str], ...]:
    """The release counts stages from 1."""
    ours, number = rf"backbone/stage_{stage}_block_0*(\d+)", stage + 1
    embed = f"backbone/downsample_{stage}" if stage else "backbone/patch_embed"
    return (
        (f"{embed}/conv", f"patch_embed{number}.proj"),
        (f"{embed}/norm", f"patch_embed{number}.norm"),
        (f"backbone/{closing_norm(stage, 4)}", f"norm{number}"),
        *_block_names(ours, rf"block{number}.\1", "dwconv.dwconv"),
    )


TORCH_NAMES = {
    "timm": (
        (r"backbone/patch_embed/conv", r"patch_embed.proj"),
        (r"backbone/patch_embed/norm", r"patch_embed.norm"),
        (r"backbone/downsample_(\d)/conv", r"stages.\1.downsample.proj"),
        (r"backbone/downsample_(\d)/norm", r"stages.\1.downsample.norm"),
        *((f"backbone/{closing_norm(i, 4)}", f"stages.{i}.norm") for i in range(4)),
        *_block_names(_BLOCK, r"stages.\1.blocks.\2", "dwconv"),
        (r"head/classifier", r"head"),
    ),
    "official": (
        *(rule for stage in range(4) for rule in _official_stage_names(stage)),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
