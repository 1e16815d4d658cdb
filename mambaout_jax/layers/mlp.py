# SPDX-License-Identifier: Apache-2.0
"""The perceptron of a transformer block."""

from typing import Any

import flax.linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.initializers import normal_init
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
