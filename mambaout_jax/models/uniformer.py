# SPDX-License-Identifier: Apache-2.0
"""UniFormer: the first stages mix tokens by depthwise convolutions, the last ones by attention.

Paper: Li et al., "UniFormer: Unifying Convolution and Self-attention for Visual Recognition", TPAMI
2023, arXiv 2201.09450; size: Table 1 there. Names and epsilons as in
image_classification/models/uniformer.py of github.com/Sense-X/UniFormer at 52a0415. The accuracy
that tables print for UniFormer-B, 83.9, is that of `uniformer_base_ls`, with layer scale in the
stages of attention; without it, 83.8.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import BatchNormHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import torch_inits
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import Weights

_CONV_STAGES = 2  # so many of the first stages have no attention


def depthwise(side: int, implementation: str, dtype: Dtype | None, name: str) -> DepthwiseConv:
    """Depthwise convolution with PyTorch's initial values."""
    inits = torch_inits(side**2)
    return DepthwiseConv(side, implementation, dtype=dtype, **inits, name=name)


class ConvBlock(nn.Module):
    """Local block: positions by convolution, a depthwise mixer, a perceptron (Section 3.2).

        x = x + positions(x)
        x = x + conv2(mixer(conv1(norm1(x))))
        x = x + fc2(gelu(fc1(norm2(x))))

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the last two branches of an example while
            training.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype

        def dense(features, name, y):
            return Dense(features, dtype=dtype, **torch_inits(y.shape[-1]), name=name)(y)

        x = x + depthwise(3, self.conv_implementation, dtype, "positions")(x)
        y = BatchNorm(dtype=dtype, name="norm1")(x, train)
        y = dense(channels, "conv1", y)
        y = depthwise(5, self.conv_implementation, dtype, "mixer")(y)
        y = dense(channels, "conv2", y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = BatchNorm(dtype=dtype, name="norm2")(x, train)
        y = dense(channels, "fc2", activation("gelu")(dense(4 * channels, "fc1", y)))
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class AttentionBlock(nn.Module):
    """Global block: positions by convolution, attention, a perceptron (Section 3.2).

        x = x + positions(x)
        x = x + gamma1 · attention(norm1(x))
        x = x + gamma2 · mlp(norm2(x))

    Attributes:
        heads: heads of the attention.
        layer_scale: whether there are gamma1 and gamma2.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the last two branches of an example while
            training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    layer_scale: bool
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        shape, dtype = x.shape, self.dtype

        def branch(y, number):
            if self.layer_scale:
                y = LayerScale(1e-6, dtype=dtype, name=f"layer_scale{number}")(y)
            return DropPath(self.drop_path, name=f"drop_path{number}")(y, train)

        x = x + depthwise(3, self.conv_implementation, dtype, "positions")(x)
        x = x.reshape(shape[0], -1, shape[-1])  # (B, L, C)
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        x = x + branch(MultiHeadSelfAttention(self.heads, dtype=dtype, name="attention")(y), 1)
        y = LayerNorm(dtype=dtype, name="norm2")(x)
        x = x + branch(Mlp(4 * shape[-1], dtype=dtype, name="mlp")(y), 2)
        return x.reshape(shape)


class UniFormer(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        head_dim: channels of a head of the attention.
        layer_scale: whether the branches of attention blocks have learned factors.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    head_dim: int = 64
    layer_scale: bool = False
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        local, attending = self.block_class(ConvBlock), self.block_class(AttentionBlock)
        maps, x = [], images
        for i, (dim, rates) in enumerate(zip(self.dims, self.stage_rates, strict=True)):
            side = 4 if i == 0 else 2
            inits = torch_inits(side**2 * jnp.shape(x)[-1])
            name = "patch_embed" if i == 0 else f"downsample_{i}"
            x = ConvNorm(dim, side, side, epsilon=1e-5, dtype=dtype, **inits, name=name)(x)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                options = (self.conv_implementation, rate, dtype)
                if i < _CONV_STAGES:
                    x = local(*options, name=name)(x, train)
                else:
                    heads = max(1, dim // self.head_dim)
                    x = attending(heads, self.layer_scale, *options, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = UniFormer
HEAD = BatchNormHead

_BASE = {"depths": (5, 8, 20, 7), "dims": (64, 128, 320, 512)}

# Rate of drop path: exp/uniformer_base*/run.sh.
# fmt: off
VARIANTS = {
    "uniformer_base": Variant(_BASE, {}, 49_776_552, 8_249_019_904, 0.3),
    "uniformer_base_ls": Variant(
        {**_BASE, "layer_scale": True}, {}, 49_796_520, 8_249_019_904, 0.3, top1=83.9),
}
# fmt: on

DECAY = backbone.DECAY


def _names_of_stage(i: int) -> tuple[tuple[str, ...], ...]:
    embed = "patch_embed" if i == 0 else f"downsample_{i}"
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"blocks{i + 1}.\1"
    return (
        (rf"backbone/{embed}/conv", f"patch_embed{i + 1}.proj"),
        (rf"backbone/{embed}/norm", f"patch_embed{i + 1}.norm"),
        (rf"{block}/positions", f"{theirs}.pos_embed"),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/mixer", f"{theirs}.attn"),
        (rf"{block}/(conv\d)", rf"{theirs}.\2", "pointwise"),
        (rf"{block}/(fc\d)", rf"{theirs}.mlp.\2", "pointwise"),
        (rf"{block}/attention/(\w+)", rf"{theirs}.attn.\2"),
        (rf"{block}/mlp/(\w+)", rf"{theirs}.mlp.\2"),
        (rf"{block}/layer_scale(\d)/gamma", rf"{theirs}.gamma_\2"),
    )


TORCH_NAMES = {
    "official": (
        *(rule for i in range(4) for rule in _names_of_stage(i)),
        (r"head/norm", "norm"),
        (r"head/classifier", "head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
