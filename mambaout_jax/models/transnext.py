# SPDX-License-Identifier: Apache-2.0
"""TransNeXt: each token attends to its neighbours and to a coarse map by one softmax.

Paper: Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", CVPR 2024, arXiv
2311.17132; sizes: Table 10 there. Names and epsilons as in classification/transnext.py and
attention_native.py of github.com/DaiShiResearch/TransNeXt at c8a9974.

Scores are cosines, multiplied by the logarithm of how many keys the token sees, so that images may
have any size: the code there has to be told it before the model is made. Positions are functions of
coordinates, in units of the grid at `pretrain_size`.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant, closing_norm
from mambaout_jax.heads.classifier import MeanHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import check_symbols, map_size
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.aggregated_attention import AggregatedAttention, CosineAttention
from mambaout_jax.published import Weights, released_weights


class TransNeXtBlock(nn.Module):
    """x + attention(norm1(x)), then x + fc2(gelu(conv(y)) · v), (y, v) = fc1(norm2(x)).

    Attributes:
        heads, reduction, grid: see `AggregatedAttention`; reduction 1: all tokens see each other.
        hidden: channels of y and of v.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    grid: tuple[int, int]
    hidden: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype, name = self.dtype, "attention"
        if self.reduction == 1:
            mixer = CosineAttention(self.heads, self.grid, dtype, name=name)
        else:
            mixer = AggregatedAttention(self.heads, self.reduction, self.grid, dtype, name=name)
        y = mixer(LayerNorm(dtype=dtype, name="norm1")(x))
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y, gate = jnp.split(Dense(2 * self.hidden, dtype=dtype, name="fc1")(y), 2, axis=-1)
        init, implementation = normal_fan_out_init(9), self.conv_implementation
        conv = DepthwiseConv(3, implementation, dtype=dtype, kernel_init=init, name="conv")
        y = Dense(x.shape[-1], dtype=dtype, name="fc2")(activation("gelu")(conv(y)) * gate)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class TransNeXt(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        mlp_ratios: width of each stage's perceptrons over that of the blocks, before a third of it
            is taken away for the gate.
        reductions: side of a pixel of each stage's coarse map; 1: all tokens see each other.
        pretrain_size: side or (height, width) in pixels of the images that coordinates are in units
            of; the size that the weights were first trained at.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    heads: tuple[int, ...]
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    pretrain_size: int | tuple[int, int] = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Normalised maps of all stages.

        Raises:
            ValueError: heads do not divide a stage's channels, or the images' size is a symbol that
                may not divide.
        """
        dtype = self.layer_dtype
        check_symbols(jnp.shape(images)[1:3], self.strides, self.reductions)
        block = self.block_class(TransNeXtBlock)
        maps, x = [], images
        for i, (dim, rates) in enumerate(zip(self.dims, self.stage_rates, strict=True)):
            side, stride = (7, 4) if i == 0 else (3, 2)
            init = normal_fan_out_init(side**2 * dim)
            name = "patch_embed" if i == 0 else f"downsample_{i}"
            window = {"epsilon": 1e-5, "dtype": dtype, "kernel_init": init, "name": name}
            x = ConvNorm(dim, side, stride, side // 2, **window)(x)
            grid = map_size(self.pretrain_size, self.strides[i])
            hidden = int(2 * self.mlp_ratios[i] * dim / 3)
            options = (self.heads[i], self.reductions[i], grid, hidden, self.conv_implementation)
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            x = LayerNorm(dtype=dtype, name=closing_norm(i, len(self.dims)))(x)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = TransNeXt
HEAD = MeanHead

_SMALL = {"dims": (72, 144, 288, 576), "heads": (3, 6, 12, 24)}
_BASE = {"dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32)}

# Rates of drop path: classification/configs/transnext_{tiny,small,base}.py.
# fmt: off
VARIANTS = {
    "transnext_tiny": Variant(
        {"depths": (2, 2, 15, 2), **_SMALL}, {}, 28_258_960, 5_711_069_568, 0.25, top1=84.0),
    "transnext_small": Variant(
        {"depths": (5, 5, 22, 5), **_SMALL}, {}, 49_741_564, 10_290_562_816, 0.45, top1=84.7),
    "transnext_base": Variant(
        {"depths": (5, 5, 23, 5), **_BASE}, {}, 89_721_496, 18_299_881_472, 0.6, top1=84.8),
}
# fmt: on

_OWN = "temperature|query_embedding|relative_pos_bias_local|learnable_tokens|learnable_bias"
DECAY = (*backbone.DECAY, (rf"/({_OWN})$", False))


def _names_of_stage(i: int) -> tuple[tuple[str, ...], ...]:
    embed = "patch_embed" if i == 0 else f"downsample_{i}"
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"block{i + 1}.\1"
    return (
        (rf"backbone/{embed}/conv", f"patch_embed{i + 1}.proj"),
        (rf"backbone/{embed}/norm", f"patch_embed{i + 1}.norm"),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/attention/reduce", f"{theirs}.attn.sr", "pointwise"),
        (rf"{block}/attention/position_bias/(\w+)", rf"{theirs}.attn.cpb_\2"),
        (rf"{block}/attention/(?:query/)?(\w+)", rf"{theirs}.attn.\2"),
        (rf"{block}/(fc\d)", rf"{theirs}.mlp.\2"),
        (rf"{block}/conv", f"{theirs}.mlp.dwconv.dwconv"),
        (f"backbone/{closing_norm(i, 4)}", f"norm{i + 1}"),
    )


TORCH_NAMES = {
    "official": (
        *(rule for i in range(4) for rule in _names_of_stage(i)),
        (r"head/classifier", "head"),
    ),
}


def _released(size: str, *results: float | None) -> tuple[str, Weights]:
    model, repository = f"transnext_{size}", f"transnext-{size}-224-1k"
    url = f"https://huggingface.co/DaiShiResearch/{repository}/resolve/main/{model}_224_1k.pth"
    rows = (224, 0.875, *results)
    return released_weights(model, url, "Apache-2.0", rows, crop_fraction=0.875)


# README.md of the release: top-1 on the validation set, and on ImageNet-V2, -A, -R and -Sketch.
# fmt: off
WEIGHTS = dict((
    _released("tiny", 84.0, None, None, 73.8, 39.9, 49.6, 37.6),
    _released("small", 84.7, None, None, 74.8, 47.1, 52.5, 39.7),
    _released("base", 84.8, None, None, 75.1, 50.6, 53.9, 41.4),
))
# fmt: on
