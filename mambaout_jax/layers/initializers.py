# SPDX-License-Identifier: Apache-2.0
"""Initial values as PyTorch code has them."""

from typing import Any

import jax
from flax import linen as nn
from flax.typing import Initializer

# timm's `trunc_normal_(std=0.02)` cuts at -2 and 2, a hundred standard deviations away: it is a
# plain normal distribution. JAX's `truncated_normal` would cut at two standard deviations.
normal_init = nn.initializers.normal(0.02)

xavier_init = nn.initializers.xavier_uniform()  # of detectors (Glorot and Bengio 2010)


def normal_fan_out_init(fan_out: int) -> Initializer:
    """Normal of variance 2 / fan_out (He et al. 2015), fan_out as taps of one output channel.

    Args:
        fan_out: side² · channels that come out / groups of a convolution.
    """
    return nn.initializers.normal((2 / fan_out) ** 0.5)


def uniform_fan_in_init(fan_in: int) -> Initializer:
    """Uniform in ±1/√fan_in: PyTorch's default for linear layers, convolutions and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_inits(fan_in: int) -> dict[str, Any]:
    """`kernel_init` and `bias_init` of a layer that a reference leaves as PyTorch makes it."""
    init = uniform_fan_in_init(fan_in)
    return {"kernel_init": init, "bias_init": init}
