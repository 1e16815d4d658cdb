# SPDX-License-Identifier: Apache-2.0
"""Convolutions of feature maps, padded as in PyTorch.

("SAME" would pad even sizes by (0, 1) at stride 2, half a pixel off.)
"""

import functools
import math
import operator

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.strided_conv import strided_conv
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.positions import height_and_width


class Conv(nn.Module):
    """Convolution over all channels with a square kernel, zeros around the map.

    Attributes:
        features: channels that come out.
        kernel_size: side K of the kernel, stored as (K, K, I, F).
        stride: step in pixels.
        padding: zeros on every side.
        use_bias: whether there is a bias.
        dtype: dtype of the computation, None to promote.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        shape = (self.kernel_size, self.kernel_size, jnp.shape(x)[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = strided_conv(jnp.asarray(x), kernel, stride=self.stride, padding=self.padding)
        return y if bias is None else y + bias[None, None, None]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return output.size * self.kernel_size**2 * inputs[0].shape[-1]


class DepthwiseConv(nn.Module):
    """Depthwise convolution, zeros around the map: of stride 1 it keeps the map's size.

    Attributes:
        kernel_size: odd side K of the kernel, stored as (K, K, 1, C), or its odd height and width.
        implementation: see `kernels.depthwise_conv`.
        use_bias: whether there is a bias.
        dtype: dtype of the computation, None to promote.
        dilation: pixels from one tap to the next.
        stride: step in pixels. With one above 1 there are products and sums of every so-manyth
            pixel, which every backend fuses, and `implementation` says nothing.
        padding: of a stride above 1, zeros before and behind each axis; None: K // 2 everywhere.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
    """

    kernel_size: int | tuple[int, int]
    implementation: str = "auto"
    use_bias: bool = True
    dtype: Dtype | None = None
    dilation: int = 1
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
        channels = x.shape[-1]
        shape = (*height_and_width(self.kernel_size), 1, channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (channels,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel[:, :, 0]
        if self.stride == 1:
            options = {"dilation": self.dilation, "implementation": self.implementation}
            y = depthwise_conv(x, kernel, **options)
        else:
            y = self._thinned(x, kernel)
        return y if bias is None else y + bias[None, None, None]

    def _thinned(
        self, x: Float[Array, "B H W C"], kernel: Float[Array, "KH KW C"]
    ) -> Float[Array, "B _ _ C"]:
        sides = (kernel.shape[0], kernel.shape[1])
        pads = self.padding or tuple((side // 2, side // 2) for side in sides)
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        factors = kernel.reshape(math.prod(sides), 1, 1, 1, -1)
        pairs = zip(taps(x, sides, self.stride), factors, strict=True)
        return functools.reduce(operator.add, (pixels * factor for pixels, factor in pairs))

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return output.size * math.prod(height_and_width(self.kernel_size))


def taps(
    x: Float[Array, "B H W C"], sides: tuple[int, int], stride: int | tuple[int, int]
) -> list[Float[Array, "B _ _ C"]]:
    """For each place in a window, row by row, the pixels there in windows `stride` apart.

    Rows and columns that fill no whole window are left out.

    Args:
        x: a map, with its padding.
        sides: rows and columns of a window.
        stride: step in pixels, or the steps down and across.
    """
    steps = height_and_width(stride)
    # Windows are counted so that symbols of `jax.export` cancel.
    down, across = (
        step * ((n - side + step) // step - 1) + 1
        for n, side, step in zip(x.shape[1:3], sides, steps, strict=True)
    )
    return [
        x[:, i : i + down : steps[0], j : j + across : steps[1]]
        for i in range(sides[0])
        for j in range(sides[1])
    ]


def unfold(
    x: Float[Array, "B H W C"], side: int, stride: int, padding: int
) -> Float[Array, "B _ _ C K"]:
    """The pixels that a convolution reads at each of its places, row by row: K = side² of them.

    As `torch.nn.Unfold`, whose channels are C · K here. They are copied, never multiplied.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return jnp.stack(taps(x, (side, side), stride), axis=-1)
