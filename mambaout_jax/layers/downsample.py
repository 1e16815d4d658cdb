# SPDX-License-Identifier: Apache-2.0
"""Where maps become smaller: a convolution with its norm, a stem of two, merging of patches."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.kernels.dispatch import is_known
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv, taps
from mambaout_jax.layers.initializers import normal_init, torch_inits
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm


class ConvNorm(nn.Module):
    """Convolution and layer norm: a patch embedding, or the downsampling between two stages.

    Attributes:
        features: channels that come out.
        kernel_size, stride, padding: see `layers.conv.Conv`.
        norm_first: normalise what comes in instead of what comes out.
        norm_bias: whether the norm has a bias.
        epsilon: added to the variance by the norm.
        dtype: dtype of the computation, None to promote.
        kernel_init, bias_init, use_bias: see `layers.conv.Conv`.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    norm_first: bool = False
    norm_bias: bool = True
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    kernel_init: Initializer = normal_init
    bias_init: Initializer = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        norm = LayerNorm(self.epsilon, self.dtype, self.norm_bias, name="norm")
        window = (self.kernel_size, self.stride, self.padding)
        inits: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        conv = Conv(self.features, *window, self.use_bias, dtype=self.dtype, **inits, name="conv")
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
        torch_init: initial values of the convolutions as PyTorch makes them.
    """

    features: int
    mid_norm: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    torch_init: bool = False

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ F"]:
        x = self._conv(self.features // 2, "conv1", images)
        if self.mid_norm:
            x = LayerNorm(self.epsilon, dtype=self.dtype, name="norm1")(x)
        x = activation(self.activation)(x)
        x = self._conv(self.features, "conv2", x)
        return LayerNorm(self.epsilon, dtype=self.dtype, name="norm2")(x)

    def _conv(
        self, features: int, name: str, x: Float[ArrayLike, "B H W I"]
    ) -> Float[Array, "B _ _ F"]:
        inits = torch_inits(9 * jnp.shape(x)[-1]) if self.torch_init else {}
        return Conv(features, 3, 2, 1, dtype=self.dtype, **inits, name=name)(x)


def mean_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
    """The mean of each 2 x 2 pixels; at the end of an odd side, of those that there are."""
    (B, H, W, C), rows, columns = x.shape, *((n + 1) // 2 for n in x.shape[1:3])
    if not is_known(H, W) or H % 2 or W % 2:  # the last row and column once more
        x = x[:, jnp.minimum(jnp.arange(2 * rows), H - 1)]
        x = x[:, :, jnp.minimum(jnp.arange(2 * columns), W - 1)]
    return x.reshape(B, rows, 2, columns, 2, C).mean(axis=(2, 4))


def max_pool(x: Float[Array, "B H W C"], stride: int = 1) -> Float[Array, "B _ _ C"]:
    """The largest of 3 x 3 pixels; elementwise, which has derivatives of any order."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for sides, steps in (((3, 1), (stride, 1)), ((1, 3), (1, stride))):
        x = functools.reduce(jnp.maximum, taps(x, sides, steps))
    return x


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
