# SPDX-License-Identifier: Apache-2.0
"""Where maps become smaller: a convolution with its norm, a stem of two, merging of patches."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm


class ConvNorm(nn.Module):
    """Convolution and layer norm: a patch embedding, or the downsampling between two stages.

    Attributes:
        features: channels that come out.
        kernel_size, stride, padding: see `layers.conv.Conv`.
        norm_first: normalise what comes in instead of what comes out.
        epsilon: added to the variance by the norm.
        dtype: dtype of the computation, None to promote.
        kernel_init, bias_init: see `layers.conv.Conv`.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    norm_first: bool = False
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        norm = LayerNorm(self.epsilon, dtype=self.dtype, name="norm")
        window = (self.kernel_size, self.stride, self.padding)
        conv = Conv(
            self.features,
            *window,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="conv",
        )
        x = jnp.asarray(x)
        return conv(norm(x)) if self.norm_first else norm(conv(x))


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2: images to a map of a quarter of their size.

    Attributes:
        features: channels of the map; the first convolution makes half of them.
        mid_norm: normalise between the convolutions, too.
        activation: what follows the first, a key of `layers.activations.ACTIVATIONS`.
        epsilon: added to the variance by the norms.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    mid_norm: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        x = Conv(self.features // 2, 3, 2, 1, dtype=self.dtype, name="conv1")(images)
        if self.mid_norm:
            x = LayerNorm(self.epsilon, dtype=self.dtype, name="norm1")(x)
        x = activation(self.activation)(x)
        x = Conv(self.features, 3, 2, 1, dtype=self.dtype, name="conv2")(x)
        return LayerNorm(self.epsilon, dtype=self.dtype, name="norm2")(x)


class PatchMerging(nn.Module):
    """2 x 2 neighbours become one token (Liu et al. 2021, Swin).

    A map of odd sides is padded with zeros at its end.

    Attributes:
        features: channels that come out.
        epsilon: added to the variance by the norm.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    epsilon: float = 1e-5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ F"]:
        B, H, W, C = x.shape
        x = jnp.pad(x, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
        x = x.reshape(B, -(-H // 2), 2, -(-W // 2), 2, C).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(*x.shape[:3], 4 * C)  # columns of the neighbours before their rows
        x = LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)
        return Dense(self.features, use_bias=False, dtype=self.dtype, name="reduction")(x)
