# SPDX-License-Identifier: Apache-2.0
"""Residual branches: their learned scale, and dropping them while training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Float


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor (Touvron et al. 2021, CaiT, Eq. 4).

    Attributes:
        value: initial factor.
        dtype: dtype of the computation, None to promote.
    """

    value: float
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        gamma = self.param(
            "gamma", nn.initializers.constant(self.value), (x.shape[-1],), jnp.float32
        )
        x, gamma = nn.dtypes.promote_dtype(x, gamma, dtype=self.dtype)
        return x * gamma.reshape((1,) * (x.ndim - 1) + gamma.shape)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # as in the literature


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the branch of whole examples while training.

    Kept branches are divided by the probability of keeping, so that the expectation is unchanged.
    Draws from the random stream `dropout`.

    Attributes:
        rate: probability of dropping, in [0, 1); an array where blocks run in a loop.
    """

    rate: float | Float[Array, ""]

    def __call__(self, x: Float[Array, "B ..."], train: bool) -> Float[Array, "B ..."]:
        if not train or (not isinstance(self.rate, jax.Array) and self.rate == 0):
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, (x / keep).astype(x.dtype), jnp.zeros_like(x))


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rate of every block, by stage: linear over the depth from 0 to `last`.

    Raises:
        ValueError: `last` is not in [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path={last} is out of range; it must be at least 0 and below 1")
    steps = max(1, sum(depths) - 1)
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [
        [last * (start + j) / steps for j in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]
