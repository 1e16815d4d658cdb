# SPDX-License-Identifier: Apache-2.0
"""Gates that weigh the channels of a whole map by what the map holds on average."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm


class SqueezeExcite(nn.Module):
    """x · sigmoid(expand(act(reduce(mean(x))))) (Hu et al. 2018, Section 3).

    Attributes:
        reduced: channels in between.
        activation: a key of `activations.ACTIVATIONS`.
        dtype: dtype of the computation, None to promote.
        inits: a layer's channels in and out to its initialisers, as arguments of `Dense`.
    """

    reduced: int
    activation: str = "relu"
    dtype: Dtype | None = None
    inits: Callable[[int, int], dict[str, Any]] = lambda fan_in, fan_out: {}

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.mean(axis=(1, 2), keepdims=True)
        y = activation(self.activation)(self._dense(self.reduced, x.shape[-1], "reduce")(y))
        return x * jax.nn.sigmoid(self._dense(x.shape[-1], self.reduced, "expand")(y))

    def _dense(self, features: int, inputs: int, name: str) -> Dense:
        return Dense(features, dtype=self.dtype, **self.inits(inputs, features), name=name)


class NormGate(nn.Module):
    """x · sigmoid(expand(gelu(reduce(mean(norm(x)))))): what is left of LightViT's BiAttn.

    LocalMamba (arXiv 2403.09338, Section 3.3) and EfficientVMamba use the gate of the channels and
    leave out that of the tokens.

    Attributes:
        ratio: channels in between over those of the map.
        dtype: dtype of the computation, None to promote.
    """

    ratio: float = 0.125
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        channels = x.shape[-1]
        mean = LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)
        mean = mean.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        y = Dense(int(self.ratio * channels), dtype=self.dtype, name="reduce")(mean)
        y = Dense(channels, dtype=self.dtype, name="expand")(activation("gelu")(y))
        return x * jax.nn.sigmoid(y)
