# SPDX-License-Identifier: Apache-2.0
"""Linear layers over channels, computed on flattened tokens.

XLA's CPU backward pass of a matrix product with more than one leading axis is two to four times
slower than with one, so all leading axes are folded into one.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from mambaout_jax.kernels.matmul import join_matmul, matmul, split_matmul
from mambaout_jax.layers.initializers import normal_init


class Dense(nn.Module):
    """Linear layer over channels.

    Attributes:
        features: channels that come out.
        use_bias: whether there is a bias.
        dtype: dtype of the computation, None to promote.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
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

    @nn.nowrap
    def macs(self, inputs: tuple, output: Any) -> int:
        return output.size * inputs[0].shape[-1]


class SplitDense(nn.Module):
    """`Dense` whose result is wanted in parts. The parameters are those of one `Dense`.

    Attributes:
        features: channels of each part.
        dtype: dtype of the computation, None to promote.
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

    @nn.nowrap
    def macs(self, inputs: tuple, output: Any) -> int:
        return inputs[0].size * sum(self.features)


class JoinDense(nn.Module):
    """`Dense` of inputs that belong side by side. The parameters are those of one `Dense`.

    Inputs without channels add nothing.

    Attributes:
        features: channels that come out.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, *parts: Float[Array, "... _"]) -> Float[Array, "... F"]:
        width = sum(part.shape[-1] for part in parts)
        kernel = self.param("kernel", normal_init, (width, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        *inputs, kernel, bias = nn.dtypes.promote_dtype(*parts, kernel, bias, dtype=self.dtype)
        tokens = tuple(part.reshape(-1, part.shape[-1]) for part in inputs if part.shape[-1])
        y = join_matmul(tokens, kernel) + bias[None]
        return y.reshape(*inputs[0].shape[:-1], self.features)

    @nn.nowrap
    def macs(self, inputs: tuple, output: Any) -> int:
        return sum(part.size for part in inputs) * self.features
