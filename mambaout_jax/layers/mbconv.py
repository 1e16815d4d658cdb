# SPDX-License-Identifier: Apache-2.0
"""The inverted residual of CoAtNet and MOAT (Sandler et al. 2018, normalised first)."""

from collections.abc import Callable

import flax.linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.channel_gates import SqueezeExcite
from mambaout_jax.layers.conv import DepthwiseConv, taps
from mambaout_jax.layers.downsample import mean_pool
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.residual import DropPath

EXPANSION = 4  # channels in the middle over those that come out


class MBConv(nn.Module):
    """shortcut(x) + shrink(se(act(norm(conv(act(norm(expand(norm(x)))))))).

    With a stride of 2 the shortcut is a mean of 2 x 2 pixels; with other channels, a linear layer.

    Attributes:
        features: channels that come out.
        stride: 1 or 2.
        squeeze: whether there is an `SqueezeExcite`, of a quarter of `features`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
        epsilon, momentum: see `BatchNorm`.
        stride_first: the first linear layer has the stride, not the convolution.
        even_padding: at stride 2 the convolution sees as many zeros before the map as behind it,
            as in PyTorch; else fewer before it, as TensorFlow's "same" has it.
        init_of: fan-out to the initialiser of a kernel.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    features: int
    stride: int
    squeeze: bool
    drop_path: float
    dtype: Dtype | None
    epsilon: float = 1e-5
    momentum: float = 0.1
    stride_first: bool = False
    even_padding: bool = True
    init_of: Callable[[int], Initializer] = normal_fan_out_init
    conv_implementation: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B _ _ F"]:
        shortcut = mean_pool(x) if self.stride == 2 else x
        if x.shape[-1] != self.features:
            shortcut = self._dense(self.features, "shortcut")(shortcut)
        hidden = EXPANSION * self.features
        y = self._norm("norm")(x, train)
        stride = self.stride
        if self.stride_first:
            y, stride = taps(y, (1, 1), stride)[0], 1
        y = self._dense(hidden, "expand", use_bias=False)(y)
        y = activation("gelu")(self._norm("expand_norm")(y, train))
        y = self._conv(stride, (y.shape[1], y.shape[2]))(y)
        y = activation("gelu")(self._norm("conv_norm")(y, train))
        if self.squeeze:
            inits = lambda _, fan_out: {"kernel_init": self.init_of(fan_out)}  # noqa: E731
            y = SqueezeExcite(self.features // 4, "silu", self.dtype, inits, name="se")(y)
        y = self._dense(self.features, "shrink")(y)
        return shortcut + DropPath(self.drop_path, name="mbconv_drop_path")(y, train)

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(self.epsilon, self.momentum, dtype=self.dtype, name=name)

    def _dense(self, features: int, name: str, use_bias: bool = True) -> Dense:
        init = self.init_of(features)
        return Dense(features, use_bias, dtype=self.dtype, kernel_init=init, name=name)

    def _conv(self, stride: int, size: tuple[int, int]) -> DepthwiseConv:
        padding = None if self.even_padding else (same_padding(size[0]), same_padding(size[1]))
        return DepthwiseConv(
            3,
            self.conv_implementation,
            use_bias=False,
            dtype=self.dtype,
            stride=stride,
            padding=padding,
            kernel_init=self.init_of(9),
            name="conv",
        )


def same_padding(length: int) -> tuple[int, int]:
    """Zeros before and behind an axis for three taps at stride 2, as TensorFlow's "same" has them.

    Behind an even axis there is one more than a window reaches, so that both kinds grow by two and
    symbols of `jax.export` cancel.
    """
    return length % 2, 2 - length % 2
