# SPDX-License-Identifier: Apache-2.0
"""Convolution along a sequence that never looks ahead."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.layers.initializers import uniform_fan_in_init


class CausalConv(nn.Module):
    """Depthwise convolution over K tokens, the last of which is the token itself, with bias.

        y_t = bias + Σ_k kernel_k · x_{t - (K - 1 - k) · dilation},  zeros before the first token

    Attributes:
        kernel_size: K.
        dtype: dtype of the computation, None to promote.
        dilation: tokens from one tap to the next.
    """

    kernel_size: int
    dtype: Dtype | None = None
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        (_, L, D), K = x.shape, self.kernel_size
        kernel = self.param("kernel", uniform_fan_in_init(K), (K, 1, D), jnp.float32)
        bias = self.param("bias", uniform_fan_in_init(K), (D,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        padded = jnp.pad(x, ((0, 0), ((K - 1) * self.dilation, 0), (0, 0)))
        y = bias[None, None]
        for k in range(K):
            first = k * self.dilation
            tap = lax.slice_in_dim(kernel, k, k + 1)  # (1, 1, D)
            y = y + tap * lax.slice_in_dim(padded, first, first + L, axis=1)  # (B, L, D)
        return y

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return output.size * self.kernel_size
