# SPDX-License-Identifier: Apache-2.0
"""The mixer of a Mamba block: all that stands between its norm and its residual connection.

`MambaMixer` is that of Mamba (Gu and Dao 2023, arXiv 2312.00752, Figure 3), which walks over a
sequence once; `PathMamba` walks over the patches of an image along several paths.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.initializers import uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.mixers.conv import CausalConv
from mambaout_jax.mixers.routes import Order, Path, steps_of, take, walk
from mambaout_jax.mixers.ssm import (
    SSM,
    STATE_SIZE,
    Coefficients,
    ScanSize,
    Selection,
    dt_rank_of,
    scan_together,
    sum_of,
)


class MambaMixer(nn.Module):
    """The mixer of a Mamba block.

        x, z = split(in_proj(X));  Y = out_proj(SSM(silu(conv(x))) · silu(z))

    Attributes:
        expand: width of the SSM over that of the block.
        kernel_size: taps of the causal convolution.
        state_size, dtype: as in `Selection`; its dt_rank is a sixteenth of the block's width.
        implementation: see `kernels.selective_scan`.
    """

    expand: int = 2
    kernel_size: int = 4
    state_size: int = STATE_SIZE
    implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        width = x.shape[-1]
        u, z = project_in(x, self.expand, self.dtype)
        u = jax.nn.silu(CausalConv(self.kernel_size, dtype=self.dtype, name="conv")(u))
        y = SSM(
            self.state_size,
            dt_rank_of(width),
            implementation=self.implementation,
            dtype=self.dtype,
            name="ssm",
        )(u, z)
        return project_out(y, width, self.dtype)


class PathMamba(nn.Module):
    """A Mamba block's mixer over patches, with a convolution and an SSM of its own for each path.

        x, z = split(in_proj(X))
        y_p  = back_p(SSM_p(silu(conv_p(x along p)))) · silu(z)
        Y    = out_proj(Σ_p y_p / P), or out_proj(Σ_p weigh(y_p))

    One more token than the map has stands in the middle of the sequence, a class token. (The gate
    of a token is the same on every path, hence it follows the way back.)

    Attributes:
        paths: walks over the map, see `mixers.routes`.
        size: (H, W) of the map.
        expand: width of the SSMs over that of the block.
        kernel_size: taps of the causal convolutions.
        state_size, dtype: as in `Selection`; its dt_rank is a sixteenth of the block's width.
        implementation: see `kernels.selective_scan`.
        weigh: applied to the result of each path before they are added; None: their mean is taken.
        token_turns: a path that is walked backwards meets the class token where the sequence is
            turned around as a whole, not in the middle. They differ where H · W is odd.
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]
    expand: int = 2
    kernel_size: int = 4
    state_size: int = STATE_SIZE
    implementation: str = "auto"
    dtype: Dtype | None = None
    weigh: nn.Module | None = None
    token_turns: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        (_, L, width), dtype = x.shape, self.dtype
        u, z = project_in(x, self.expand, dtype)
        orders = self._orders(L)
        sequences, chosen = [], []
        for number, order in enumerate(orders):
            path = _Path(
                self.kernel_size, self.state_size, dt_rank_of(width), dtype, name=f"path_{number}"
            )
            sequence, coefficients = path(take(u, order))
            sequences.append(sequence)
            chosen.append(coefficients)
        scanned = scan_together(sequences, chosen, self.implementation)
        gate = jax.nn.silu(z)
        results = [take(y, steps_of(order, L)) for y, order in zip(scanned, orders, strict=True)]
        if self.weigh is None:
            y = sum_of(results) / len(results) * gate
        else:
            y = sum_of(self.weigh(y * gate) for y in results)
        return project_out(y, width, dtype)

    @nn.nowrap
    def scan_size(self, inputs: tuple) -> ScanSize:
        B, L, C = inputs[0].shape
        steps = sum(map(len, self._orders(L)))
        paths = len(self.paths)
        return ScanSize(paths, B * steps // paths, self.expand * C, self.state_size, gated=True)

    def _orders(self, length: int) -> list[Order]:
        """Numbers of the tokens of a sequence as each path meets them."""
        return [
            _with_token(path, self.size, self.token_turns)
            if length > self.size[0] * self.size[1]
            else walk(path, *self.size)
            for path in self.paths
        ]


class _Path(nn.Module):
    """What a path does with its sequence before the scan."""

    kernel_size: int
    state_size: int
    dt_rank: int
    dtype: Dtype | None

    @nn.compact
    def __call__(self, u: Float[Array, "B L D"]) -> tuple[Float[Array, "B L D"], Coefficients]:
        u = jax.nn.silu(CausalConv(self.kernel_size, dtype=self.dtype, name="conv")(u))
        return u, Selection(self.state_size, self.dt_rank, self.dtype, name="selection")(u)


def project_in(
    x: Float[Array, "B *S C"], expand: int, dtype: Dtype | None, use_bias: bool = False
) -> tuple[Float[Array, "B *S D"], Float[Array, "B *S D"]]:
    """The first layer of a mixer, to be called inside it: input of the SSM, and its gate."""
    width = x.shape[-1]
    projected = Dense(
        2 * expand * width,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=uniform_fan_in_init(width),
        name="in_proj",
    )(x)
    u, z = jnp.split(projected, 2, axis=-1)
    return u, z


def project_out(
    y: Float[Array, "B *S D"], width: int, dtype: Dtype | None, use_bias: bool = False
) -> Float[Array, "B *S C"]:
    """The last layer of a mixer, to be called inside it."""
    init = uniform_fan_in_init(y.shape[-1])
    return Dense(width, use_bias=use_bias, dtype=dtype, kernel_init=init, name="out_proj")(y)


def _with_token(path: Path, size: tuple[int, int], turns: bool) -> Order:
    """The walk over a sequence with one more token in its middle."""
    middle = size[0] * size[1] // 2
    order = walk(Path(path.order) if turns else path, *size)
    xp = numpy_for(*size)
    order = xp.where(order >= middle, order + 1, order)
    step = xp.arange(order.shape[0] + 1)
    order = xp.where(step == middle, middle, order[step - (step > middle)])
    return xp.flip(order) if turns and path.reverse else order
