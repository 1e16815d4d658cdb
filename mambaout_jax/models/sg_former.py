# SPDX-License-Identifier: Apache-2.0
"""SG-Former: attention sees groups of tokens, the smaller the more was looked at them before.

Paper: Ren et al., "SG-Former: Self-guided Transformer with Evolving Token Reallocation", ICCV 2023,
arXiv 2308.12216; sizes: Table 1 there. Names and epsilons as in sgformer.py of
github.com/OliverRensu/SG-Former at b982803.

Blocks come in pairs. The first attends to a coarse map and in windows, and its weights say how
significant each token is; the second sorts the tokens by that, once numbered row by row and once
column by column, and attends to the sums of groups of them: large groups of the least significant
ones, small groups of the others. The order has no gradient. Tokens of nearly the same significance
change places by the rounding of float32, which moves the logits of its references by a sixth of
their standard deviation; those in float64 are met.

The code there takes 224 x 224 pixels alone. Here images may have other sizes: windows are filled
with zeros, which are seen, and the last group of a size repeats its last token until it is full.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Positioned, Pyramid, Variant, closing_norm
from mambaout_jax.heads.classifier import MeanHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm, MapNorm
from mambaout_jax.layers.positions import check_symbols, grid_sinusoids
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.guided_attention import GROUPS, GuidedAttention, HybridAttention
from mambaout_jax.published import Weights


def depthwise(
    implementation: str, dtype: Dtype | None, name: str, use_bias: bool = True, stride: int = 1
) -> DepthwiseConv:
    """Depthwise convolution of 3 x 3 taps, with the published initial values."""
    init = normal_fan_out_init(9)
    return DepthwiseConv(
        3, implementation, use_bias, dtype, stride=stride, kernel_init=init, name=name
    )


class Stem(nn.Module):
    """Images to a map of a quarter of their size: three convolutions, each with a norm.

    Attributes:
        features: channels that come out.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ C"]:
        x, init = jnp.asarray(images), normal_fan_out_init(9 * self.features)
        for i, stride in enumerate((2, 1, 2), start=1):
            window = (3, stride, 1, False)
            x = Conv(self.features, *window, self.dtype, init, name=f"conv{i}")(x)
            x = MapNorm(dtype=self.dtype, name=f"norm{i}")(x)
            x = activation("gelu")(x) if i < 3 else x
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)


class Downsample(nn.Module):
    """norm3(expand(gelu(norm2(conv(gelu(norm1(reduce(x)))))))): a map of half the size.

    Attributes:
        features: channels that come out.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ F"]:
        dtype, init = self.dtype, normal_fan_out_init(self.features)
        x = Dense(self.features, False, dtype, init, name="conv1")(x)
        x = activation("gelu")(MapNorm(dtype=dtype, name="norm1")(x))
        x = depthwise(self.conv_implementation, dtype, "conv2", use_bias=False, stride=2)(x)
        x = activation("gelu")(MapNorm(dtype=dtype, name="norm2")(x))
        x = Dense(self.features, False, dtype, init, name="conv3")(x)
        return MapNorm(dtype=dtype, name="norm3")(x)


class SGBlock(nn.Module):
    """x + attend(norm1(x)), then x + fc2(gelu(y + conv(y))), y = fc1(norm2(x)).

    `attend` adds positions by convolution to the mixed tokens and projects the sum.

    Attributes:
        heads, reduction: see the attentions above.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    reduction: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        train: bool,
        significance: Float[Array, "B H W"] | None = None,
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W"] | None]:
        """The map, and how significant tokens are where the next block has to know it."""
        channels, dtype = x.shape[-1], self.dtype
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        positions = Dense(channels, dtype=dtype, name="positions")(y)
        positions = depthwise(self.conv_implementation, dtype, "positions_conv")(positions)
        options, significant = (self.heads, self.reduction, dtype), None
        if self.reduction > 1 and significance is None:
            y, significant = HybridAttention(*options, name="attention")(y)
        else:
            y = GuidedAttention(*options, name="attention")(y, significance)
        y = Dense(channels, dtype=dtype, name="proj")(y + positions)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y = Dense(4 * channels, dtype=dtype, name="fc1")(y)
        y = activation("gelu")(y + depthwise(self.conv_implementation, dtype, "conv")(y))
        y = Dense(channels, dtype=dtype, name="fc2")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train), significant


class SGFormer(Pyramid, Positioned):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention, even numbers where the reduction is not 1.
        reductions: side of a pixel of each stage's coarse map, which says how large groups are,
            8, 4 or 2; 1: all tokens see each other.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    heads: tuple[int, ...]
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    conv_implementation: str = "auto"

    @nn.nowrap
    def init_positions(
        self, key: Array, shape: tuple[int, ...], dtype: Dtype
    ) -> Float[ArrayLike, "1 L C"]:
        return jnp.asarray(grid_sinusoids(self.grid, shape[2])[None], dtype)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Normalised maps of all stages.

        Raises:
            ValueError: heads do not divide a stage's channels, or are odd where they attend to two
                things, or there are no groups for a reduction, or the images' size is a symbol that
                may not divide.
        """
        self._check()
        check_symbols(jnp.shape(images)[1:3], self.strides, self.reductions)
        dtype, implementation = self.layer_dtype, self.conv_implementation
        block = self.block_class(SGBlock)
        x, maps = self._with_positions(Stem(self.dims[0], dtype, name="stem")(images)), []
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = Downsample(self.dims[i], implementation, dtype, name=f"downsample_{i}")(x)
            options, significance = (self.heads[i], self.reductions[i], implementation), None
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x, significance = block(*options, rate, dtype, name=name)(x, train, significance)
            x = LayerNorm(dtype=dtype, name=closing_norm(i, len(self.dims)))(x)
            maps.append(x)
        return Features(tuple(maps))

    def _with_positions(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        shape = (1, self.grid[0] * self.grid[1], x.shape[-1])
        table = self.param("pos_embed", self.init_positions, shape, jnp.float32)
        table = self.resize_positions(table, self.grid, (x.shape[1], x.shape[2]))
        x, table = nn.dtypes.promote_dtype(x, table, dtype=self.layer_dtype)
        return x + table.reshape(1, *x.shape[1:])

    def _check(self) -> None:
        for heads, reduction in zip(self.heads, self.reductions, strict=False):
            if reduction not in GROUPS or (reduction > 1 and heads % 2):
                raise ValueError(
                    f"heads={self.heads} with reductions={self.reductions} is not allowed; a "
                    f"reduction is one of {sorted(GROUPS)}, and heads are even unless it is 1"
                )


BACKBONE = SGFormer
HEAD = MeanHead

_DIMS = {"dims": (64, 128, 256, 512), "heads": (2, 4, 8, 16)}

# Rates of drop path: README.md of the release.
# fmt: off
VARIANTS = {
    "sgformer_s": Variant(
        {"depths": (2, 4, 16, 1), **_DIMS}, {}, 22_545_981, 4_783_848_448, 0.1, top1=83.2),
    "sgformer_m": Variant(
        {"depths": (2, 6, 28, 2), **_DIMS}, {}, 38_689_316, 7_426_853_376, 0.2, top1=84.1),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/pos_embed$", False))


def _names_of_stage(i: int) -> tuple[tuple[str, ...], ...]:
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"block{i + 1}.\1"
    merging = (
        (rf"backbone/downsample_{i}/conv([13])", rf"patch_embed{i + 1}.conv\1.c", "pointwise"),
        (rf"backbone/downsample_{i}/conv2", f"patch_embed{i + 1}.conv2.c"),
        (rf"backbone/downsample_{i}/norm(\d)", rf"patch_embed{i + 1}.conv\1.bn"),
    )
    return (
        *(merging if i else ()),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/positions", f"{theirs}.attn.lepe_linear"),
        (rf"{block}/positions_conv", f"{theirs}.attn.lepe_conv"),
        (rf"{block}/attention/coarse", f"{theirs}.attn.sr"),
        (rf"{block}/attention/(\w+)", rf"{theirs}.attn.\2"),
        (rf"{block}/proj", f"{theirs}.attn.proj"),
        (rf"{block}/(fc\d)", rf"{theirs}.mlp.\2"),
        (rf"{block}/conv", f"{theirs}.mlp.dwconv.dwconv"),
        (f"backbone/{closing_norm(i, 4)}", f"norm{i + 1}"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/pos_embed", "pos_embed"),
        *((rf"backbone/stem/conv{n + 1}", f"patch_embed1.conv.{2 * n}.c") for n in range(3)),
        *((rf"backbone/stem/norm{n + 1}", f"patch_embed1.conv.{2 * n}.bn") for n in range(3)),
        (r"backbone/stem/norm", "patch_embed1.norm"),
        *(rule for i in range(4) for rule in _names_of_stage(i)),
        (r"head/classifier", "head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
