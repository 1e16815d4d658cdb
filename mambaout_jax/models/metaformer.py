# SPDX-License-Identifier: Apache-2.0
"""ConvFormer and CAFormer: one frame, and per stage a separable convolution or attention in it.

Paper: Yu et al., "MetaFormer Baselines for Vision", TPAMI 2024, arXiv 2210.13452. Names and
epsilon as in github.com/huggingface/pytorch-image-models (timm), and those of the authors' release,
github.com/sail-sg/metaformer; sizes: the release.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import Weights, released_weights

TOKEN_MIXERS = ("conv", "attention")
HEAD_WIDTH = 32  # channels of a head of the attention
_RESCALED_STAGES = 2  # the last ones, which learn a scale for what passes a block by


class StarReLU(nn.Module):
    """scale · relu(x)² + bias, both numbers learned.

    Attributes:
        dtype: dtype of the computation, None to promote.
    """

    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.param("scale", nn.initializers.ones, (1,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (1,), jnp.float32)
        x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        shape = (1,) * x.ndim
        return scale.reshape(shape) * jnp.square(jax.nn.relu(x)) + bias.reshape(shape)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature


class SeparableConv(nn.Module):
    """fc2(conv(act(fc1(x)))), twice as wide inside, without biases.

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        x = Dense(2 * channels, use_bias=False, dtype=dtype, name="fc1")(x)
        x = StarReLU(dtype, name="act")(x)
        conv = (7, self.conv_implementation, False, dtype)
        x = DepthwiseConv(*conv, name="conv")(x)
        return Dense(channels, use_bias=False, dtype=dtype, name="fc2")(x)


class MetaFormerBlock(nn.Module):
    """x = s1 · x + mixer(norm1(x)), then s2 · x + fc2(act(fc1(norm2(x)))), without biases.

    Attributes:
        token_mixer: one of `TOKEN_MIXERS`.
        rescaled: whether there are learned scales s1 and s2 of the channels.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    token_mixer: str
    rescaled: bool
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        y = self._mix(LayerNorm(dtype=dtype, use_bias=False, name="norm1")(x))
        if self.rescaled:
            x = LayerScale(1.0, dtype, name="scale1")(x)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, use_bias=False, name="norm2")(x)
        y = Dense(4 * channels, use_bias=False, dtype=dtype, name="fc1")(y)
        y = StarReLU(dtype, name="act")(y)
        y = Dense(channels, use_bias=False, dtype=dtype, name="fc2")(y)
        if self.rescaled:
            x = LayerScale(1.0, dtype, name="scale2")(x)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)

    def _mix(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        if self.token_mixer == "conv":
            return SeparableConv(self.conv_implementation, self.dtype, name="mixer")(x)
        B, _, _, C = x.shape
        heads = max(1, C // HEAD_WIDTH)
        attention = MultiHeadSelfAttention(
            heads, dtype=self.dtype, qkv_bias=False, proj_bias=False, name="mixer"
        )
        return attention(x.reshape(B, -1, C)).reshape(x.shape)


class MetaFormer(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        token_mixers: of each stage, one of `TOKEN_MIXERS`.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    token_mixers: tuple[str, ...]
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        self.check_words("token_mixers", self.token_mixers, TOKEN_MIXERS)
        dtype = self.layer_dtype
        block = self.block_class(MetaFormerBlock)
        norm = {"norm_bias": False, "dtype": dtype}
        maps = []
        x = ConvNorm(self.dims[0], 7, 4, 2, **norm, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                name = f"downsample_{i}"
                x = ConvNorm(self.dims[i], 3, 2, 1, norm_first=True, **norm, name=name)(x)
            rescaled = i >= len(self.depths) - _RESCALED_STAGES
            options = (self.token_mixers[i], rescaled, self.conv_implementation)
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = MetaFormer
HEAD = HiddenHead

_HEAD = {"hidden_activation": "squared_relu", "hidden_epsilon": 1e-5}
_CONV = ("conv", "conv", "conv", "conv")
_CONV_AND_ATTENTION = ("conv", "conv", "attention", "attention")
_S18 = {"depths": (3, 3, 9, 3), "dims": (64, 128, 320, 512)}
_S36 = {"depths": (3, 12, 18, 3), "dims": (64, 128, 320, 512)}
_M36 = {"depths": (3, 12, 18, 3), "dims": (96, 192, 384, 576)}

# fmt: off
VARIANTS = {
    "caformer_s18": Variant(
        {**_S18, "token_mixers": _CONV_AND_ATTENTION},
        _HEAD, 26_341_656, 4_106_941_440, 0.15, top1=83.6),
    "caformer_s36": Variant(
        {**_S36, "token_mixers": _CONV_AND_ATTENTION},
        _HEAD, 39_297_102, 7_971_597_312, 0.3, top1=84.5),
    "caformer_m36": Variant(
        {**_M36, "token_mixers": _CONV_AND_ATTENTION},
        _HEAD, 56_204_878, 13_240_630_656, 0.4, top1=85.2),
    "convformer_s18": Variant(
        {**_S18, "token_mixers": _CONV},
        _HEAD, 26_774_448, 3_940_984_320, 0.2, top1=83.0),
    "convformer_s36": Variant(
        {**_S36, "token_mixers": _CONV},
        _HEAD, 40_012_152, 7_639_683_072, 0.3, top1=84.1),
    "convformer_m36": Variant(
        {**_M36, "token_mixers": _CONV},
        _HEAD, 57_051_640, 12_842_333_568, 0.4, top1=84.5),
}
# fmt: on

DECAY = backbone.DECAY

_Rules = tuple[tuple[str, ...], ...]
_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"


def _block_names(theirs: str, convolved: str) -> _Rules:
    """Rules of the blocks, which both namings share.

    Args:
        theirs: PyTorch's name of a block.
        convolved: stages in which linear layers of blocks are 1x1 convolutions.
    """
    mixer = rf"{theirs}.token_mixer"
    pointwise = rf"backbone/stage_({convolved})_block_0*(\d+)"
    return (
        (rf"{_BLOCK}/mixer/act/(scale|bias)", rf"{mixer}.act1.\3"),
        (rf"{_BLOCK}/act/(scale|bias)", rf"{theirs}.mlp.act.\3"),
        (rf"{_BLOCK}/scale(\d)/gamma", rf"{theirs}.res_scale\3.scale"),
        (rf"{_BLOCK}/mixer/conv", rf"{mixer}.dwconv"),
        (rf"{_BLOCK}/mixer/(qkv|proj)", rf"{mixer}.\3"),
        (rf"{pointwise}/mixer/fc(\d)", rf"{mixer}.pwconv\3", "pointwise"),
        (rf"{_BLOCK}/mixer/fc(\d)", rf"{mixer}.pwconv\3"),
        (rf"{pointwise}/(fc\d)", rf"{theirs}.mlp.\3", "pointwise"),
        (rf"{_BLOCK}/(fc\d)", rf"{theirs}.mlp.\3"),
        (rf"{_BLOCK}/(norm\d)", rf"{theirs}.\3"),
    )


def _torch_names(variant: Variant) -> Mapping[str, _Rules]:
    """timm has 1x1 convolutions where a stage convolves; the release has linear layers."""
    mixers = variant.backbone["token_mixers"]
    convolved = "[" + "".join(str(i) for i, mixer in enumerate(mixers) if mixer == "conv") + "]"
    return {
        "timm": (
            (r"backbone/stem/(\w+)", r"stem.\1"),
            (r"backbone/downsample_(\d)/(\w+)", r"stages.\1.downsample.\2"),
            *_block_names(r"stages.\1.blocks.\2", convolved),
            (r"head/norm", r"head.norm"),
            (r"head/hidden", r"head.fc.fc1"),
            (r"head/hidden_norm", r"head.fc.norm"),
            (r"head/classifier", r"head.fc.fc2"),
        ),
        "official": (
            (r"backbone/stem/conv", r"downsample_layers.0.conv"),
            (r"backbone/stem/norm", r"downsample_layers.0.post_norm"),
            (r"backbone/downsample_(\d)/conv", r"downsample_layers.\1.conv"),
            (r"backbone/downsample_(\d)/norm", r"downsample_layers.\1.pre_norm"),
            *_block_names(r"stages.\1.\2", "none"),
            (r"head/norm", r"norm"),
            (r"head/hidden", r"head.fc1"),
            (r"head/hidden_norm", r"head.norm"),
            (r"head/classifier", r"head.fc2"),
        ),
    }


TORCH_NAMES = _torch_names


def _released(model: str) -> tuple[str, Weights]:
    url = f"https://huggingface.co/sail/dl/resolve/main/{model.partition('_')[0]}/{model}.pth"
    return released_weights(model, url, "Apache-2.0", (224, 1.0, VARIANTS[model].top1))


# README.md of the release, with these accuracies; the licence is that of the code.
WEIGHTS = dict(map(_released, VARIANTS))
