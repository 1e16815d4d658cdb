# SPDX-License-Identifier: Apache-2.0
"""The selective state space model as a token mixer (Gu and Dao 2023, Mamba, arXiv 2312.00752).

`SSM` mixes a sequence, `MapSSM` a map along the paths of a route. `mixers.mamba` and `mixers.ss2d`
put projections, convolutions and gates around them.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import is_known
from mambaout_jax.kernels.selective_scan import selective_scan
from mambaout_jax.kernels.selective_scan_pallas import STATES
from mambaout_jax.layers.initializers import uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.mixers.routes import Path, flatten, restore, walk

STATE_SIZE = 16  # N of Mamba
SSM_DECAY = (r"/(A_log|D)$", False)  # for a family's DECAY: rates and skips are no weights

# Step sizes at the start: drawn between these, log-uniform, and no smaller than the floor.
_DELTA_RANGE, _DELTA_FLOOR = (1e-3, 1e-1), 1e-4


# For a method that computes the inputs of a scan and scans them. Kept for the gradient, the map of
# every path in float32 and several times over, they are most of a model's memory; they are cheap to
# compute again from the map that they come from.
keep_states_only = functools.partial(
    nn.remat, policy=jax.checkpoint_policies.save_only_these_names(STATES)
)


class ScanSize(NamedTuple):
    """What decides the cost of a scan.

    Attributes:
        paths: how many times tokens are scanned.
        tokens: L of each of them, of all images.
        channels: D of each path.
        states: N.
        gated: whether the result of each is multiplied by a gate.
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
        bias_twice: add the bias of dt_proj to delta a second time, as PlainMamba does.
    """

    state_size: int
    dt_rank: int
    dtype: Dtype | None = None
    bias_twice: bool = False

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
        if self.bias_twice:
            delta = delta + self.variables["params"]["dt_proj"]["bias"][None, None]
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
    """The selective SSM over a map: one SSM per path, their results added.

    Each path has parameters of its own; all are scanned at once.

    Attributes:
        paths: walks over the map, see `mixers.routes`.
        state_size, dt_rank, dtype: as in `Selection`.
        implementation: see `kernels.selective_scan`.
        weigh: applied to the result of each path before they are added, None: nothing is.
    """

    paths: tuple[Path, ...]
    state_size: int
    dt_rank: int
    implementation: str = "auto"
    dtype: Dtype | None = None
    weigh: nn.Module | None = None

    @keep_states_only
    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        size = (x.shape[1], x.shape[2])
        sequences = [flatten(x, path) for path in self.paths]
        chosen = [
            Selection(self.state_size, self.dt_rank, self.dtype, name=f"path_{number}")(sequence)
            for number, sequence in enumerate(sequences)
        ]
        scanned = scan_together(sequences, chosen, self.implementation)
        maps = [restore(y, path, size) for y, path in zip(scanned, self.paths, strict=True)]
        return sum_of(maps if self.weigh is None else map(self.weigh, maps))

    @nn.nowrap
    def scan_size(self, inputs: tuple) -> ScanSize:
        B, H, W, D = inputs[0].shape
        tokens = B * sum(len(walk(path, H, W)) for path in self.paths) // len(self.paths)
        return ScanSize(len(self.paths), tokens, D, self.state_size, gated=False)


def scan_together(
    sequences: Sequence[Float[Array, "B _ D"]], chosen: Sequence[Coefficients], implementation: str
) -> list[Float[Array, "B _ D"]]:
    """Scans P sequences of D channels as one of P · D channels in P groups.

    Shorter sequences are filled up at their end, where no token before it sees it.
    """
    lengths = [x.shape[1] for x in sequences]
    longest = functools.reduce(jax.core.max_dim, lengths)
    if not is_known(longest):
        longest = jax.core.max_dim(longest, 1)  # symbols may be 0, and a scan starts with a token

    def joined(parts: Sequence[Array], join: Callable[..., Array], axis: int) -> Array:
        if set(lengths) != {longest}:
            rest = ((0, 0),) * (parts[0].ndim - 2)
            parts = [jnp.pad(x, ((0, 0), (0, longest - x.shape[1]), *rest)) for x in parts]
        return join(parts, axis=axis)

    delta, A, B, C, D = zip(*chosen, strict=True)
    y: Any = selective_scan(
        joined(sequences, jnp.concatenate, -1),
        joined(delta, jnp.concatenate, -1),
        jnp.concatenate(A),
        joined(B, jnp.stack, 2),  # (B, L, P, N)
        joined(C, jnp.stack, 2),
        jnp.concatenate(D),
        delta_softplus=True,
        implementation=implementation,
    )
    parts = jnp.split(y, len(sequences), axis=-1)
    return [part[:, :length] for part, length in zip(parts, lengths, strict=True)]


def sum_of(arrays: Iterable[Array]) -> Array:
    """Their sum, in their order."""
    return functools.reduce(operator.add, arrays)


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
