# SPDX-License-Identifier: Apache-2.0
"""EMO: inverted residuals of mobile networks, with attention inside those of the last two stages.

Paper: Zhang et al., "Rethinking Mobile Block for Efficient Attention-based Models", ICCV 2023,
arXiv 2301.01146. Sizes, names and initial values: github.com/zhangzjn/EMO at 27d9b40. Table 1 of
the MambaOut paper prints 6.5 M parameters; the authors' code and log have the 6.17 M here, and
their README says 6.1 M.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.channel_gates import SqueezeExcite
from mambaout_jax.layers.conv_norm import ConvBatchNorm, DepthwiseConvBatchNorm
from mambaout_jax.layers.initializers import torch_inits, uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import check_heads, scaled_dot_product_attention
from mambaout_jax.published import Weights

EPSILON = 1e-6  # of every norm
TOKEN_MIXERS = ("conv", "attention")


def _dense(
    features: int, inputs: int, dtype: Dtype | None, name: str, use_bias: bool = True
) -> Dense:
    return Dense(features, use_bias, dtype, **torch_inits(inputs), name=name)


def _conv(
    side: int, stride: int, implementation: str, dtype: Dtype | None
) -> DepthwiseConvBatchNorm:
    init = uniform_fan_in_init(side**2)
    return DepthwiseConvBatchNorm(
        side, stride, implementation, EPSILON, dtype, kernel_init=init, name="conv"
    )


class StridedWindowAttention(nn.Module):
    """softmax(query keyᵀ / √width) x in windows of pixels that lie far apart.

    Windows have a fixed number of pixels in each direction, and take every n-th one of the map.
    Maps that they do not fill are padded with zeros, which are seen. The values are the pixels
    themselves.

    Attributes:
        heads: number of heads, a divisor of the channels.
        window: side of a window in pixels.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    window: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Mixes the pixels of each window.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        (B, H, W, C), side, heads = x.shape, self.window, self.heads
        check_heads(heads, C)
        x = jnp.pad(x, ((0, 0), (0, -H % side), (0, -W % side), (0, 0)))
        rows, columns = -(-H // side), -(-W // side)  # windows, and steps between their pixels
        x = x.reshape(B, side, rows, side, columns, C).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape(B * rows * columns, side**2, C)  # (B · windows, L, C)
        qk = _dense(2 * C, C, self.dtype, "qk")(x)
        parts = jnp.concatenate((qk, x.astype(qk.dtype)), axis=-1)
        parts = parts.reshape(B * rows * columns, side**2, 3, heads, C // heads)
        query, key, value = jnp.moveaxis(parts, (2, 3), (0, 2))  # (B · windows, heads, L, width)
        y = scaled_dot_product_attention(query, key, value).swapaxes(1, 2)
        y = y.reshape(B, rows, columns, side, side, C).transpose(0, 3, 1, 4, 2, 5)
        return y.reshape(B, side * rows, side * columns, C)[:, :H, :W]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        B, H, W, C = output.shape
        tokens = (H + -H % self.window) * (W + -W % self.window)
        return 2 * B * tokens * C * self.window**2


class MobileBlock(nn.Module):
    """proj(y + silu(conv(y))),  y = act(expand(attention(norm(x)))): an inverted residual ("iRMB").

    The block is added to what passes it by. Where the map becomes smaller there is neither
    attention nor anything that passes by, inside or outside.

    Attributes:
        features: channels that come out.
        expansion: width inside over that of what comes in.
        kernel_size: side of the convolution's kernel.
        halves: whether the map becomes smaller.
        token_mixer: one of `TOKEN_MIXERS`; "conv" has no attention, batch norm and SiLU, and
            "attention" has layer norm and GELU.
        heads, window: see `StridedWindowAttention`.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    expansion: int
    kernel_size: int
    halves: bool
    token_mixer: str
    heads: int
    window: int
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        channels, dtype = x.shape[-1], self.dtype
        hidden = self.expansion * channels
        if self.token_mixer == "conv":
            y, act = BatchNorm(EPSILON, dtype=dtype, name="batch_norm")(x, train), "silu"
        else:
            y, act = LayerNorm(EPSILON, dtype=dtype, name="layer_norm")(x), "gelu"
        if self.token_mixer == "attention" and not self.halves:
            y = StridedWindowAttention(self.heads, self.window, dtype, name="attention")(y)
        y = activation(act)(_dense(hidden, channels, dtype, "expand")(y))
        conv = _conv(self.kernel_size, 2 if self.halves else 1, self.conv_implementation, dtype)
        z = jax.nn.silu(conv(y, train))
        project = _dense(self.features, hidden, dtype, "proj", use_bias=False)
        if self.halves:
            return project(z)
        return x + DropPath(self.drop_path, name="drop_path")(project(y + z), train)


class EMOStem(nn.Module):
    """A convolution, then proj(se(silu(conv(x)))): a map of half of the images' size.

    Attributes:
        features: channels of the map.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ F"]:
        width, dtype = self.features, self.dtype
        inits = torch_inits(3**2 * jnp.shape(images)[-1])
        embed = ConvBatchNorm(width, 3, 2, 1, True, EPSILON, dtype, **inits, name="embed")
        x = jax.nn.silu(_conv(3, 1, self.conv_implementation, dtype)(embed(images, train), train))
        x = SqueezeExcite(width, "silu", dtype, lambda inputs, _: torch_inits(inputs), name="se")(x)
        return _dense(width, width, dtype, "proj", use_bias=False)(x)


class EMO(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32; each begins with a halving block.

    Attributes:
        expansions: width inside the blocks of each stage over that of the block, twice as much in
            the first.
        heads: of the attention of each stage.
        stem_dim: channels of the stem's map.
        kernel_sizes: side of the convolutions' kernels of each stage.
        token_mixers: of each stage, one of `TOKEN_MIXERS`, see `MobileBlock`.
        window: side of the attention's windows in pixels.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    expansions: tuple[int, ...]
    heads: tuple[int, ...]
    stem_dim: int = 24
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 5)
    token_mixers: tuple[str, ...] = ("conv", "conv", "attention", "attention")
    window: int = 7
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        self.check_words("token_mixers", self.token_mixers, TOKEN_MIXERS)
        dtype, conv = self.layer_dtype, self.conv_implementation
        block = self.block_class(MobileBlock)
        maps = []
        x = EMOStem(self.stem_dim, conv, dtype, name="stem")(images, train)
        for i, rates in enumerate(self.stage_rates):
            mixer = (self.token_mixers[i], self.heads[i], self.window, conv)
            for j, rate in enumerate(rates):
                x = block(
                    self.dims[i],
                    self.expansions[i] * (1 if j else 2),
                    self.kernel_sizes[i],
                    j == 0,
                    *mixer,
                    rate,
                    dtype,
                    name=f"stage_{i}_block_{j:02d}",
                )(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = EMO
HEAD = PooledHead

# fmt: off
VARIANTS = {
    "emo_6m": Variant(
        {"depths": (3, 3, 9, 3), "dims": (48, 72, 160, 320), "expansions": (2, 3, 4, 5),
         "heads": (3, 3, 8, 10)},
        {"norm_first": True, "epsilon": EPSILON}, 6_168_496, 950_250_048, 0.05, top1=79.0),
}
# fmt: on

DECAY = backbone.DECAY


def _stage_names(i: int) -> tuple[tuple[str, ...], ...]:
    """Rules of stage `i`, which is the authors' stage `i + 1`."""
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"stage{i + 1}.\1"
    return (
        (rf"{block}/batch_norm", rf"{theirs}.norm"),
        (rf"{block}/layer_norm", rf"{theirs}.norm.norm"),
        (rf"{block}/attention/qk", rf"{theirs}.qk.conv", "pointwise"),
        (rf"{block}/expand", rf"{theirs}.v.conv", "pointwise"),
        (rf"{block}/conv/(conv|norm)", rf"{theirs}.conv_local.\2"),
        (rf"{block}/proj", rf"{theirs}.proj.conv", "pointwise"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/stem/embed/conv", r"stage0.0.convs.0.0"),
        (r"backbone/stem/embed/norm", r"stage0.0.convs.0.1"),
        (r"backbone/stem/conv/(conv|norm)", r"stage0.1.conv_local.\1"),
        (r"backbone/stem/se/(reduce|expand)", r"stage0.1.se.conv_\1", "pointwise"),
        (r"backbone/stem/proj", r"stage0.1.proj.conv", "pointwise"),
        *(rule for i in range(4) for rule in _stage_names(i)),
        (r"head/norm", r"norm.norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
