# SPDX-License-Identifier: Apache-2.0
"""The perceptrons of transformer blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.initializers import normal_fan_out_init, normal_init
from mambaout_jax.layers.linear import Dense


class Mlp(nn.Module):
    """fc2(act(fc1(x))), as wide at its end as at its start.

    Attributes:
        hidden: channels in between.
        activation: a key of `activations.ACTIVATIONS`.
        dtype: dtype of the computation, None to promote.
        kernel_init, bias_init: see `linear.Dense`.
    """

    hidden: int
    activation: str = "gelu"
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        channels = x.shape[-1]
        inits: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        x = Dense(self.hidden, dtype=self.dtype, **inits, name="fc1")(x)
        x = activation(self.activation)(x)
        return Dense(channels, dtype=self.dtype, **inits, name="fc2")(x)


class ConvMlp(nn.Module):
    """fc2(gelu(conv(fc1(x)))), as wide at its end as at its start; a depthwise 3 x 3 convolution.

    Attributes:
        hidden: channels in between.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
        init_of: fan-out to the initialiser of the linear layers' kernels.
    """

    hidden: int
    conv_implementation: str = "auto"
    dtype: Dtype | None = None
    init_of: Callable[[int], Initializer] = lambda fan_out: normal_init

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, conv = x.shape[-1], (3, self.conv_implementation)
        init = normal_fan_out_init(3 * 3)
        x = self._dense(self.hidden, "fc1")(x)
        x = DepthwiseConv(*conv, dtype=self.dtype, kernel_init=init, name="conv")(x)
        return self._dense(channels, "fc2")(activation("gelu")(x))

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, dtype=self.dtype, kernel_init=self.init_of(features), name=name)
