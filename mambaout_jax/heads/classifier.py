# SPDX-License-Identifier: Apache-2.0
"""Classification heads that families share: from `Features` to logits.

With `num_classes=0` each returns what its last layer, `classifier`, would read.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.backbone import Features
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.initializers import torch_inits
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm, LayerNorm, RMSNorm
from mambaout_jax.layers.precision import compute_dtype


class PooledHead(nn.Module):
    """Mean over the last map, norm, linear classifier.

    Attributes:
        num_classes: classes, 0 for none.
        norm_first: normalise each token, and then take the mean.
        rms_norm: normalise by the root mean square.
        epsilon: added by the norm to the variance, or to the mean square.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    norm_first: bool = False
    rms_norm: bool = False
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        norm = (RMSNorm if self.rms_norm else LayerNorm)(self.epsilon, dtype=dtype, name="norm")
        x = features.maps[-1]
        x = norm(x).mean(axis=(1, 2)) if self.norm_first else norm(x.mean(axis=(1, 2)))  # (B, C)
        return classify(x, self.num_classes, dtype)


class MeanHead(nn.Module):
    """Mean over the last map, linear classifier: for backbones whose maps are normalised.

    Attributes:
        num_classes: classes, 0 for none.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        x = features.maps[-1].mean(axis=(1, 2))  # (B, C)
        return classify(x, self.num_classes, compute_dtype(self.dtype))


class TokenHead(nn.Module):
    """Norm of the class token, linear classifier.

    Attributes:
        num_classes: classes, 0 for none.
        rms_norm: normalise by the root mean square.
        epsilon: added by the norm to the variance, or to the mean square.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    rms_norm: bool = False
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        token: Any = features.token  # families with this head have one
        norm = (RMSNorm if self.rms_norm else LayerNorm)(self.epsilon, dtype=dtype, name="norm")
        return classify(norm(token), self.num_classes, dtype)


class HiddenHead(nn.Module):
    """Mean over the last map, norm, hidden layer, linear classifier.

    Attributes:
        num_classes: classes, 0 for none.
        norm: normalise the mean.
        hidden_ratio: width of the hidden layer over that of the map.
        hidden_activation: a key of `layers.activations.ACTIVATIONS`.
        hidden_norm: normalise the hidden layer (MambaOut's head does, timm's `_rw` heads do not).
        hidden_epsilon: added to the variance by that norm.
        torch_init: initial values of both linear layers as PyTorch makes them.
        dropout: rate, before the classifier, while training.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    norm: bool = True
    hidden_ratio: int = 4
    hidden_activation: str = "gelu"
    hidden_norm: bool = True
    hidden_epsilon: float = 1e-6
    torch_init: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = features.maps[-1].mean(axis=(1, 2))  # (B, C)
        if self.norm:
            x = LayerNorm(dtype=dtype, name="norm")(x)
        inits = torch_inits(x.shape[-1]) if self.torch_init else {}
        x = Dense(self.hidden_ratio * x.shape[-1], dtype=dtype, **inits, name="hidden")(x)
        x = activation(self.hidden_activation)(x)
        if self.hidden_norm:
            x = LayerNorm(self.hidden_epsilon, dtype=dtype, name="hidden_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return classify(x, self.num_classes, dtype, self.torch_init)


class BatchNormHead(nn.Module):
    """Batch norm of the last map, mean over it, linear classifier.

    Attributes:
        num_classes: classes, 0 for none.
        torch_init: initial values of the classifier as PyTorch makes them.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    torch_init: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = BatchNorm(dtype=dtype, name="norm")(features.maps[-1], train)
        return classify(x.mean(axis=(1, 2)), self.num_classes, dtype, self.torch_init)


def classify(
    x: Float[Array, "B C"], num_classes: int, dtype: Dtype | None, torch_init: bool = False
) -> Float[Array, "B _"]:
    """The last layer of a head, to be called inside it; 0 classes leave `x` as it is.

    It is always called "classifier": replacing the classes of a model means replacing this layer.
    """
    if num_classes == 0:
        return x
    inits = torch_inits(x.shape[-1]) if torch_init else {}
    return Dense(num_classes, dtype=dtype, **inits, name="classifier")(x)
