# SPDX-License-Identifier: Apache-2.0
"""Normalisation over channels (layer, root mean square) and over the batch."""

import math

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Float

from mambaout_jax.kernels.layer_norm import layer_norm


class LayerNorm(nn.Module):
    """Normalises each token over its channels; the moments are at least float32.

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the result, None to promote.
        use_bias: whether there is a bias.
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            bias = jnp.asarray(bias)
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype or jnp.result_type(x, scale))
        return layer_norm(x, jnp.asarray(scale), bias, self.epsilon)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature


class RMSNorm(nn.Module):
    """Divides each token by its root mean square over the channels (Zhang and Sennrich 2019).

    Attributes:
        epsilon: added to the mean square.
        dtype: dtype of the result, None to promote; the mean square is at least float32.
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        dtype = self.dtype or jnp.result_type(x, scale)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        root = jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide / root * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(dtype)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and the map (Ioffe and Szegedy 2015).

    As in PyTorch: a batch is normalised with its own variance, and the running variance follows
    the unbiased one. Under `jit` the batch is the global one, whatever the number of devices. The
    running moments are the collection "batch_stats".

    Attributes:
        epsilon: added to the variance.
        momentum: share of the running moments that a training step replaces.
        dtype: dtype of the result, None to promote; moments are at least float32.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], train: bool) -> Float[Array, "... C"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x, scale, bias, mean, variance = nn.dtypes.promote_dtype(
            x, scale, bias, running_mean.value, running_var.value, dtype=self._moments_dtype(x)
        )
        if train:
            tokens = tuple(range(x.ndim - 1))
            mean, variance = x.mean(tokens), x.var(tokens)
            if not self.is_initializing():
                count = math.prod(x.shape[:-1])
                self._follow(running_mean, mean)
                self._follow(running_var, variance * (count / max(1, count - 1)))
        factor = scale / jnp.sqrt(variance + self.epsilon)
        shape = (1,) * (x.ndim - 1) + channels
        y = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
        return y if self.dtype is None else y.astype(self.dtype)

    def _moments_dtype(self, x: Array) -> Dtype:
        return jnp.promote_types(x.dtype, jnp.float32)

    def _follow(self, running: nn.Variable, moment: Array) -> None:
        moved = running.value + self.momentum * (moment - running.value)
        running.value = moved.astype(running.value.dtype)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature; at inference it folds into a neighbouring product


class MapNorm(nn.Module):
    """Normalises each map over its pixels and channels together: group norm of one group.

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the result, None to promote; the moments are at least float32.
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        dtype = self.dtype or jnp.result_type(x, scale)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        variance = x.var(axis=(1, 2, 3), keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + self.epsilon)
        return (x * scale[None, None, None] + bias[None, None, None]).astype(dtype)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature
