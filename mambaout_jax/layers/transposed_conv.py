# SPDX-License-Identifier: Apache-2.0
"""The transposed convolution that makes maps larger."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import Array as JaxArray
from jaxtyping import Array, Float

from mambaout_jax.kernels.matmul import matmul
from mambaout_jax.layers.initializers import normal_init


class TransposedConv(nn.Module):
    """Transposed convolution whose stride is its side: each pixel becomes a square of pixels.

    As `torch.nn.ConvTranspose2d(kernel_size=side, stride=side)`: the squares do not overlap, so it
    is one matrix product. In PyTorch the kernel is (I, F, K, K).

    Attributes:
        features: channels that come out.
        side: side K of the kernel, stored as (K, K, I, F), and the stride.
        use_bias: whether there is a bias.
        dtype: dtype of the computation, None to promote.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
    """

    features: int
    side: int = 2
    use_bias: bool = True
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*B H W I"]) -> Float[Array, "*B _ _ F"]:
        *batch, height, width, channels = x.shape
        side, features = self.side, self.features
        shape = (side, side, channels, features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        weight = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)  # (I, K·K·F)
        y = matmul(x.reshape(-1, channels), weight)
        y = y.reshape(-1, height, width, side, side, features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(*batch, height * side, width * side, features)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return output.size * inputs[0].shape[-1]
