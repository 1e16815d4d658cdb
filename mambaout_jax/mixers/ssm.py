# SPDX-License-Identifier: Apache-2.0
"""The selective state space model as a token mixer (Gu and Dao 2023, Mamba, arXiv 2312.00752).

`SSM` mixes a sequence, `MapSSM` a map along a route, and `MambaMixer` is all of a Mamba block
between its norm and its residual connection: projections, convolution, SSM and gate.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.kernels.selective_scan import selective_scan
from mambaout_jax.layers.initializers import uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.mixers.conv import CausalConv
from mambaout_jax.mixers.routes import flatten, paths_of, restore

STATE_SIZE = 16  # N of Mamba

# Step sizes at the start: drawn between these, log-uniform, and no smaller than the floor.
_DELTA_RANGE, _DELTA_FLOOR = (1e-3, 1e-1), 1e-4


class ScanSize(NamedTuple):
    """What decides the cost of a scan.

    Attributes:
        paths: how many times the tokens are scanned.
        tokens: L, of all images.
        channels: D of each path.
        states: N.
        gated: whether the result is multiplied by a gate.
    """

    paths: int
    tokens: int
    channels: int
    states: int
    gated: bool


class Coefficients(NamedTuple):
    """What a scan needs beside its input; see `kernels.selective_scan`."""

    delta: Float[Array, "B L D"]  # before softplus
    A: Float[Array, "D N"]
    B: Float[Array, "B L N"]
    C: Float[Array, "B L N"]
    D: Float[Array, "D"]


class Selection(nn.Module):
    """The coefficients of the recurrence, chosen by the tokens (Mamba, Algorithm 2, "S6").

        Δ, B, C = split(x_proj(u));  delta = dt_proj(Δ);  A = -exp(A_log)

    Attributes:
        state_size: N.
        dt_rank: R, width of Δ.
        dtype: dtype of the projections, None to promote; A and D are at least float32.
    """

    state_size: int
    dt_rank: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, u: Float[Array, "B L D"]) -> Coefficients:
        D, N, R = u.shape[-1], self.state_size, self.dt_rank
        A_log = self.param("A_log", _init_decay, (D, N), jnp.float32)
        skip = self.param("D", nn.initializers.ones, (D,), jnp.float32)
        chosen = Dense(
            R + 2 * N,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=uniform_fan_in_init(D),
            name="x_proj",
        )(u)
        delta, B, C = jnp.split(chosen, (R, R + N), axis=-1)
        delta = Dense(
            D,
            dtype=self.dtype,
            kernel_init=uniform_fan_in_init(R),
            bias_init=_init_delta_bias,
            name="dt_proj",
        )(delta)
        return Coefficients(delta, -jnp.exp(A_log), B, C, skip)

    @nn.nowrap
    def macs(self, inputs: tuple, output: Coefficients) -> int:
        return 0  # beside those of the two projections; A and D count with the scan


class SSM(nn.Module):
    """The selective SSM along a sequence.

    Attributes:
        state_size, dt_rank, dtype: as in `Selection`.
        reverse: run from the last token to the first.
        implementation: see `kernels.selective_scan`.
    """

    state_size: int
    dt_rank: int
    reverse: bool = False
    implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, u: Float[Array, "B L D"], z: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B L D"]:
        """Mixes tokens; with `z` the result is gated by silu(z)."""
        chosen = Selection(self.state_size, self.dt_rank, self.dtype, name="selection")(u)
        y: Any = selective_scan(
            u,
            *chosen,
            z=z,
            delta_softplus=True,
            reverse=self.reverse,
            implementation=self.implementation,
        )
        return y

    @nn.nowrap
    def scan_size(self, inputs: tuple) -> ScanSize:
        B, L, D = inputs[0].shape
        return ScanSize(1, B * L, D, self.state_size, gated=len(inputs) > 1)


class MapSSM(nn.Module):
    """The selective SSM over a map: one SSM per path of a route, their results added.

    Each path has parameters of its own. Paths of one direction are one scan, side by side in the
    channels, as groups of the recurrence.

    Attributes:
        routes: a key of `mixers.routes.ROUTES`.
        state_size, dt_rank, dtype: as in `Selection`.
        implementation: see `kernels.selective_scan`.
    """

    routes: str
    state_size: int
    dt_rank: int
    implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        paths = paths_of(self.routes)
        size = (x.shape[1], x.shape[2])
        y = jnp.zeros_like(x)
        for reverse in (False, True):
            sequences = []
            chosen = []
            orders = []
            for number, path in enumerate(paths):
                if path.reverse == reverse:
                    orders.append(path.order)
                    sequences.append(flatten(x, path.order))
                    select = Selection(
                        self.state_size, self.dt_rank, self.dtype, name=f"path_{number}"
                    )
                    chosen.append(select(sequences[-1]))
            if orders:
                scanned = self._scan(sequences, chosen, reverse)
                y = y + sum(
                    restore(part, order, size) for part, order in zip(scanned, orders, strict=True)
                )
        return y

    def _scan(
        self, sequences: list[Array], chosen: list[Coefficients], reverse: bool
    ) -> list[Array]:
        """Scans P sequences of D channels as one of P · D channels in P groups."""
        delta, A, B, C, D = zip(*chosen, strict=True)
        y: Any = selective_scan(
            jnp.concatenate(sequences, axis=-1),
            jnp.concatenate(delta, axis=-1),
            jnp.concatenate(A),
            jnp.stack(B, axis=2),  # (B, L, P, N)
            jnp.stack(C, axis=2),
            jnp.concatenate(D),
            delta_softplus=True,
            reverse=reverse,
            implementation=self.implementation,
        )
        return jnp.split(y, len(sequences), axis=-1)

    @nn.nowrap
    def scan_size(self, inputs: tuple) -> ScanSize:
        B, H, W, D = inputs[0].shape
        return ScanSize(len(paths_of(self.routes)), B * H * W, D, self.state_size, gated=False)


class MambaMixer(nn.Module):
    """The mixer of a Mamba block (Mamba, Figure 3).

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
        inner = self.expand * width
        init = uniform_fan_in_init(width)
        projected = Dense(
            2 * inner, use_bias=False, dtype=self.dtype, kernel_init=init, name="in_proj"
        )(x)
        u, z = jnp.split(projected, 2, axis=-1)  # each (B, L, D)
        u = jax.nn.silu(CausalConv(self.kernel_size, dtype=self.dtype, name="conv")(u))
        y = SSM(
            self.state_size,
            dt_rank_of(width),
            implementation=self.implementation,
            dtype=self.dtype,
            name="ssm",
        )(u, z)
        init = uniform_fan_in_init(inner)
        return Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name="out_proj")(y)


def dt_rank_of(width: int) -> int:
    """R for a block of `width` channels: a sixteenth, rounded up, as in Mamba."""
    return math.ceil(width / 16)


def _init_decay(key: jax.Array, shape: tuple[int, int], dtype: Dtype) -> Float[Array, "D N"]:
    """Decay rates -1 … -N in every channel (S4D-real)."""
    D, N = shape
    return jnp.broadcast_to(jnp.log(jnp.arange(1, N + 1, dtype=dtype))[None], (D, N))


def _init_delta_bias(key: jax.Array, shape: tuple[int], dtype: Dtype) -> Float[Array, "D"]:
    """softplus of it is a step size, log-uniform in `_DELTA_RANGE`."""
    low, high = map(math.log, _DELTA_RANGE)
    delta = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    delta = jnp.maximum(delta, _DELTA_FLOOR)
    return delta + jnp.log(-jnp.expm1(-delta))
