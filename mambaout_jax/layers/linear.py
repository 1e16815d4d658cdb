# SPDX-License-Identifier: Apache-2.0
"""Small layers that model families share, with PyTorch's numerics.

`dtype` is the dtype of the computation; parameters are float32. Here float32 means *at least*
float32: `compute_dtype` turns it into flax's `None`, which promotes, so that float64 parameters and
images stay float64 all the way through.
"""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.gelu import gelu
from mambaout_jax.kernels.layer_norm import layer_norm
from mambaout_jax.kernels.matmul import join_matmul, matmul, split_matmul
from mambaout_jax.kernels.strided_conv import strided_conv

# timm's `trunc_normal_(std=0.02)` cuts at -2 and 2, a hundred standard deviations away: it is a
# plain normal distribution. JAX's `truncated_normal` would cut at two standard deviations.
normal_init = nn.initializers.normal(0.02)


def uniform_fan_in_init(fan_in: int) -> Initializer:
    """Uniform in ±1/√fan_in: PyTorch's default of linear layers, convolutions and their biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": gelu, "silu": jax.nn.silu}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not known; allowed are {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def compute_dtype(dtype: Dtype) -> Dtype | None:
    """The `dtype` argument of flax layers: None (promote inputs and parameters) for float32."""
    return None if jnp.dtype(dtype) == jnp.float32 else dtype


class LayerNorm(nn.Module):
    """Normalises over channels with epsilon 1e-6; the moments are at least float32.

    Attributes:
        dtype: of the result, None to promote.
    """

    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype or jnp.result_type(x, scale))
        return layer_norm(x, jnp.asarray(scale), jnp.asarray(bias))


class StridedConv(nn.Module):
    """3x3 convolution of stride 2, padded by one on every side as in PyTorch.

    ("SAME" would pad even sizes by (0, 1), half a pixel off.)

    Attributes:
        features: channels that come out.
        dtype: of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        shape = (3, 3, jnp.shape(x)[-1], self.features)
        kernel = self.param("kernel", normal_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = strided_conv(x, kernel, stride=2, padding=1)
        return y + bias[None, None, None]


class Dense(nn.Module):
    """Linear layer over channels, computed on the flattened tokens.

    XLA's CPU backward pass of a matrix product with more than one leading axis is two to four times
    slower than with one, so all leading axes are folded into one.

    Attributes:
        features: channels that come out.
        use_bias: whether there is a bias.
        dtype: of the computation, None to promote.
        kernel_init, bias_init: initialisers.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... F"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = matmul(x.reshape(-1, x.shape[-1]), kernel)  # (tokens, F)
        if bias is not None:
            y = y + bias[None]
        return y.reshape(*x.shape[:-1], self.features)


class SplitDense(nn.Module):
    """`Dense` whose result is wanted in parts. The parameters are those of one `Dense`.

    Attributes:
        features: channels of each part.
        dtype: of the computation, None to promote.
    """

    features: tuple[int, ...]
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> list[Float[Array, "... _"]]:
        total = sum(self.features)
        kernel = self.param("kernel", normal_init, (x.shape[-1], total), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (total,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        parts: Any = split_matmul(x.reshape(-1, x.shape[-1]), kernel, self.features)
        biases = jnp.split(bias[None], list(itertools.accumulate(self.features[:-1])), axis=1)
        return [
            (part + bias).reshape(*x.shape[:-1], part.shape[1])
            for part, bias in zip(parts, biases, strict=True)
        ]


class JoinDense(nn.Module):
    """`Dense` of inputs that belong side by side. The parameters are those of one `Dense`.

    Attributes:
        features: channels that come out.
        dtype: of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, *parts: Float[Array, "... _"]) -> Float[Array, "... F"]:
        width = sum(part.shape[-1] for part in parts)
        kernel = self.param("kernel", normal_init, (width, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        *inputs, kernel, bias = nn.dtypes.promote_dtype(*parts, kernel, bias, dtype=self.dtype)
        tokens = tuple(part.reshape(-1, part.shape[-1]) for part in inputs)
        y = join_matmul(tokens, kernel) + bias[None]
        return y.reshape(*inputs[0].shape[:-1], self.features)


class DepthwiseConv(nn.Module):
    """Depthwise convolution of stride 1 that keeps the map's size, with bias.

    Attributes:
        kernel_size: odd side K of the kernel, stored as (K, K, 1, C).
        implementation: see `kernels.depthwise_conv`.
        dtype: of the computation, None to promote.
    """

    kernel_size: int
    implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        kernel = self.param("kernel", normal_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return (
            depthwise_conv(x, kernel[:, :, 0], implementation=self.implementation)
            + bias[None, None, None]
        )


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor (Touvron et al. 2021, CaiT, Eq. 4).

    Attributes:
        value: initial factor.
        dtype: of the computation, None to promote.
    """

    value: float
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        gamma = self.param(
            "gamma", nn.initializers.constant(self.value), (x.shape[-1],), jnp.float32
        )
        x, gamma = nn.dtypes.promote_dtype(x, gamma, dtype=self.dtype)
        return x * gamma.reshape((1,) * (x.ndim - 1) + gamma.shape)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the branch of whole examples while training.

    Kept branches are divided by the probability of keeping, so that the expectation is unchanged.
    Draws from the random stream `dropout`.

    Attributes:
        rate: probability of dropping, in [0, 1).
    """

    rate: float

    def __call__(self, x: Float[Array, "B ..."], train: bool) -> Float[Array, "B ..."]:
        if not train or self.rate == 0:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rate of every block, by stage: linear over the depth from 0 to `last`.

    Raises:
        ValueError: `last` is not in [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path={last} is out of range; it must be at least 0 and below 1")
    steps = max(1, sum(depths) - 1)
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [
        [last * (start + j) / steps for j in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Of an image size that may be one side of a square."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def resize_positions(
    table: Float[ArrayLike, "1 L C"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[ArrayLike, "1 _ C"]:
    """Interpolates a table of positions to another grid of patches; equal grids change nothing.

    Bicubic with antialias, timm's way: there PyTorch's kernel is that of JAX, with a = -0.5.
    (Without antialias PyTorch has a = -0.75.)

    Args:
        table: the position of the class token, which is kept, then those of the patches, row by
            row.
        grid, new_grid: rows and columns.
    """
    if grid == new_grid:
        return table
    table = jnp.asarray(table)
    channels = table.shape[-1]
    patches = table[0, 1:].reshape(*grid, channels)  # (H, W, C)
    patches = jax.image.resize(patches, (*new_grid, channels), "cubic", antialias=True)
    return jnp.concatenate((table[:, :1], patches.reshape(1, -1, channels)), axis=1)
