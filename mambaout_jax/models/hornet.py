# SPDX-License-Identifier: Apache-2.0
"""HorNet: products of gated convolutions, of an order that rises from stage to stage.

Paper: Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
Convolutions", NeurIPS 2022, arXiv 2207.14284. Sizes, names and initial values:
github.com/raoyongming/HorNet at ac9e210. The model of Table 1 of the MambaOut paper is the one
whose last two stages convolve by filters of the spectrum (GF).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Complex, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.kernels.dispatch import is_known, numpy_for
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense, SplitDense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights

TOKEN_MIXERS = ("conv", "filter")
_SCALE = 1 / 3  # of what the token mixer makes
_LOWEST_ORDER = 2  # that of the first stage


class SpectralFilter(nn.Module):
    """Multiplies the spectrum of each channel by learned complex numbers: a global convolution.

    The transform is computed in at least float32. On a map of another size the filter is
    interpolated linearly, corners upon corners.

    Attributes:
        size: rows and columns of the maps that the filter is made for.
    """

    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        _, H, W, C = x.shape
        shape = (self.size[0], self.size[1] // 2 + 1, 2, C)  # real and imaginary parts
        kernel = jnp.asarray(self.param("kernel", normal_init, shape, jnp.float32))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        kernel = kernel.astype(wide.dtype)
        if shape[:2] != (H, W // 2 + 1):
            rows, columns = (
                jnp.asarray(_linear_weights(size, new_size), wide.dtype)
                for size, new_size in zip(shape[:2], (H, W // 2 + 1), strict=True)
            )
            kernel = jnp.einsum("hr,wc,rcpd->hwpd", rows, columns, kernel)
        factors = (kernel[:, :, 0] + 1j * kernel[:, :, 1])[None]
        return (_filtered if is_known(H, W) else _filtered_by_sums)(wide, factors).astype(x.dtype)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature


def _filtered(x: Float[Array, "B H W C"], factors: Complex[Array, "1 H M C"]) -> Array:
    spectrum = jnp.fft.rfft2(x, axes=(1, 2), norm="ortho")  # (B, H, W // 2 + 1, C)
    return jnp.fft.irfft2(spectrum * factors, x.shape[1:3], axes=(1, 2), norm="ortho")


def _filtered_by_sums(x: Float[Array, "B H W C"], factors: Complex[Array, "1 H M C"]) -> Array:
    """The same by matrix products, for sizes that are symbols of `jax.export`."""
    _, H, W, _ = x.shape
    rows, columns = (
        _waves(count, size).astype(factors.dtype) for count, size in ((H, H), (W // 2 + 1, W))
    )
    spectrum = jnp.einsum("hi,wj,bijc->bhwc", rows, columns, x) * factors
    # Waves stand for their mirror images, too, but for the constant and, where there is one, the
    # shortest.
    k = jnp.arange(W // 2 + 1)
    times = jnp.where((k == 0) | (2 * k == W), 1, 2)[:, None]
    return jnp.einsum("hi,wj,bhwc->bijc", rows.conj(), times * columns.conj(), spectrum).real


def _waves(count: int, size: int) -> Complex[Array, "K N"]:
    """exp(-2πi · k · n / size) / √size for so many waves k, and places n."""
    turns = jnp.arange(count)[:, None] * jnp.arange(size)[None] % size
    angles = -2j * jnp.pi * turns / size
    return jnp.exp(angles) / jnp.sqrt(size)


def _linear_weights(size: int, new_size: int) -> Float[np.ndarray | Array, "M N"]:
    """Weight of each of `size` samples in each of `new_size`, the first and last being the same."""
    xp = numpy_for(new_size)
    at = xp.arange(new_size) * (size - 1) / xp.maximum(1, xp.asarray(new_size - 1))
    return xp.maximum(0, 1 - xp.abs(at[:, None] - np.arange(size)[None]))


class GlobalLocalFilter(nn.Module):
    """norm2(interleave(conv(y₁), filter(y₂))) of the halves of the channels of y = norm1(x).

    Attributes:
        size: see `SpectralFilter`.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    size: tuple[int, int]
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        local, distant = jnp.split(y, 2, axis=-1)
        conv = (3, self.conv_implementation, False, self.dtype)
        local = DepthwiseConv(*conv, name="conv")(local)
        distant = SpectralFilter(self.size, name="filter")(distant)
        y = jnp.stack((local, distant), axis=-1).reshape(x.shape)  # (B, H, W, C / 2, 2) before
        return LayerNorm(dtype=self.dtype, name="norm2")(y)


class RecursiveGatedConv(nn.Module):
    """gⁿConv: z = p · q₀;  z = pointwise_k(z) · q_k for k = 1 … n - 1;  proj_out(z).

    p and q₀ … q_n-1 are parts of proj_in(x), all q convolved by one token mixer. The widths of the
    q double from part to part, up to that of the map.

    Attributes:
        order: n.
        token_mixer: one of `TOKEN_MIXERS`.
        size, conv_implementation: see `GlobalLocalFilter`.
        dtype: dtype of the computation, None to promote.
    """

    order: int
    token_mixer: str
    size: tuple[int, int]
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        widths = [channels // 2**i for i in reversed(range(self.order))]
        z, parts = SplitDense((widths[0], sum(widths)), dtype, name="proj_in")(x)
        if self.token_mixer == "filter":
            mixer = GlobalLocalFilter(self.size, self.conv_implementation, dtype, name="mixer")
        else:
            mixer = DepthwiseConv(7, self.conv_implementation, dtype=dtype, name="mixer")
        ends = np.cumsum(widths[:-1])
        for k, gate in enumerate(jnp.split(_SCALE * mixer(parts), ends, axis=-1)):
            if k > 0:
                z = Dense(widths[k], dtype=dtype, name=f"pointwise_{k}")(z)
            z = z * gate
        return Dense(channels, dtype=dtype, name="proj_out")(z)


class HorNetBlock(nn.Module):
    """x = x + gamma1 · gnconv(norm1(x)), then x + gamma2 · mlp(norm2(x)).

    Attributes:
        order, token_mixer, size, conv_implementation: see `RecursiveGatedConv`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    order: int
    token_mixer: str
    size: tuple[int, int]
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(dtype=dtype, name="norm1")(x)
        options = (self.order, self.token_mixer, self.size, self.conv_implementation)
        y = RecursiveGatedConv(*options, dtype, name="gnconv")(y)
        y = LayerScale(1e-6, dtype=dtype, name="layer_scale1")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=dtype, name="mlp")(y)
        y = LayerScale(1e-6, dtype=dtype, name="layer_scale2")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class HorNet(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        token_mixers: of each stage, one of `TOKEN_MIXERS`.
        filter_image_size: side in pixels of the images that filters are made for; for others they
            are interpolated.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    token_mixers: tuple[str, ...]
    filter_image_size: int = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        self.check_words("token_mixers", self.token_mixers, TOKEN_MIXERS)
        dtype = self.layer_dtype
        block = self.block_class(HorNetBlock)
        maps = []
        x = ConvNorm(self.dims[0], 4, 4, dtype=dtype, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                name = f"downsample_{i}"
                x = ConvNorm(self.dims[i], 2, 2, norm_first=True, dtype=dtype, name=name)(x)
            side = self.filter_image_size // self.strides[i]
            options = (_LOWEST_ORDER + i, self.token_mixers[i], (side, side))
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(*options, self.conv_implementation, rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = HorNet
HEAD = PooledHead

# fmt: off
VARIANTS = {
    "hornet_base_gf": Variant(
        {"depths": (2, 3, 18, 2), "dims": (128, 256, 512, 1024),
         "token_mixers": ("conv", "conv", "filter", "filter")},
        {}, 88_421_352, 15_407_774_912, 0.5, top1=84.3),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_THEIRS = r"stages.\1.\2"
_MIXER = rf"{_THEIRS}.gnconv.dwconv"
TORCH_NAMES = {
    "official": (
        (r"backbone/stem/conv", r"downsample_layers.0.0"),
        (r"backbone/stem/norm", r"downsample_layers.0.1"),
        (r"backbone/downsample_(\d)/norm", r"downsample_layers.\1.0"),
        (r"backbone/downsample_(\d)/conv", r"downsample_layers.\1.1"),
        (rf"{_BLOCK}/layer_scale(\d)/gamma", rf"{_THEIRS}.gamma\3"),
        (rf"{_BLOCK}/(norm\d)", rf"{_THEIRS}.\3"),
        (rf"{_BLOCK}/gnconv/(proj_\w+)", rf"{_THEIRS}.gnconv.\3", "pointwise"),
        *(
            (rf"{_BLOCK}/gnconv/pointwise_{k + 1}", rf"{_THEIRS}.gnconv.pws.{k}", "pointwise")
            for k in range(4)
        ),
        (rf"{_BLOCK}/gnconv/mixer/norm1", rf"{_MIXER}.pre_norm"),
        (rf"{_BLOCK}/gnconv/mixer/norm2", rf"{_MIXER}.post_norm"),
        (rf"{_BLOCK}/gnconv/mixer/conv", rf"{_MIXER}.dw"),
        (rf"{_BLOCK}/gnconv/mixer/filter/kernel", rf"{_MIXER}.complex_weight", "filter"),
        (rf"{_BLOCK}/gnconv/mixer", rf"{_MIXER}"),
        (rf"{_BLOCK}/mlp/fc(\d)", rf"{_THEIRS}.pwconv\3"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
