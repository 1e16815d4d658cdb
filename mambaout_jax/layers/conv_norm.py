# SPDX-License-Identifier: Apache-2.0
"""Convolutions with the batch norm behind them."""

import flax.linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.norms import BatchNorm


class ConvBatchNorm(nn.Module):
    """Convolution over all channels, batch norm.

    Attributes:
        features, kernel_size, stride, padding, use_bias: see `layers.conv.Conv`.
        epsilon: added to the variance by the norm.
        dtype: dtype of the computation, None to promote.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the convolution's bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ F"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.use_bias,
            self.dtype,
            self.kernel_init,
            self.bias_init,
            name="conv",
        )(x)
        return BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(x, train)


class DepthwiseConvBatchNorm(nn.Module):
    """Depthwise convolution without bias, batch norm.

    Attributes:
        kernel_size, stride, implementation: see `layers.conv.DepthwiseConv`.
        epsilon: added to the variance by the norm.
        dtype: dtype of the computation, None to promote.
        kernel_init: initialiser of the kernel.
    """

    kernel_size: int
    stride: int = 1
    implementation: str = "auto"
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ C"]:
        x = DepthwiseConv(
            self.kernel_size,
            self.implementation,
            use_bias=False,
            dtype=self.dtype,
            stride=self.stride,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(x, train)
