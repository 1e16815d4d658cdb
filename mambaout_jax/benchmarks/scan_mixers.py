# SPDX-License-Identifier: Apache-2.0
"""What the scan benchmark measures: token mixers of equal width, and scans alone.

Mixers map tokens (B, L, D). Each is the part of a block between its outer projections:

    conv                depthwise 7x7 over the square map, the mixer of the Gated CNN block; it has
                        no projections of its own
    sequential, associative, chunked, pallas
                        the selective SSM along the sequence in one direction, with the projections
                        that make its coefficients; named after the implementation of the scan
    attention           softmax attention in heads of 32 channels, with its two projections
    causal_attention    the same under a mask: all pairs are computed, half of them for nothing
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.benchmarks.scan_bounds import Amounts, bound_milliseconds
from mambaout_jax.benchmarks.timing import (
    Contender,
    Limits,
    Race,
    race,
    report_progress,
    speedup,
)
from mambaout_jax.kernels.selective_scan import IMPLEMENTATIONS, selective_scan
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.mixers.ssm import SSM, dt_rank_of

SCANS = tuple(name for name in IMPLEMENTATIONS if name != "auto")
PORTABLE_SCANS = tuple(name for name in SCANS if name != "pallas")
ATTENTIONS = ("attention", "causal_attention")
MIXERS = ("conv", *SCANS, *ATTENTIONS)
PASSES = ("forward", "forward+backward")

_KERNEL_SIDE = 7
_HEAD_WIDTH = 32


class Settings(NamedTuple):
    """Settings of the scan benchmark, see `scan.run`."""

    mixers: tuple[str, ...]
    state_size: int
    dtype: str
    tokens_per_call: int
    rounds: int
    limits: Limits


def make_parameters(width: int, settings: Settings) -> dict[str, Any]:
    """Initialises the parameters of each mixer of the settings, by name.

    All scans have the same parameters, so the sequential one, which runs everywhere, makes them.

    Raises:
        ValueError: the heads of attention do not divide the width.
    """
    token = jnp.zeros((1, 1, width))
    parameters = {}
    for name in settings.mixers:
        module = _mixer("sequential" if name in SCANS else name, width, settings)
        parameters[name] = jax.jit(module.init)(jax.random.key(0), token)
    return parameters


def measure_mixers(
    parameters: dict[str, Any],
    width: int,
    length: int,
    settings: Settings,
    previous: dict[tuple[str, str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Measures all mixers at one width and length in both passes; returns their rows.

    Args:
        parameters: parameters by mixer, from `make_parameters`.
        width: D, channels.
        length: L, tokens.
        settings: settings of the benchmark.
        previous: by mixer and pass, the last row with the time of a call; this function updates it.
    """
    batch = max(1, settings.tokens_per_call // length)
    keys = jax.random.split(jax.random.key(1))
    x, dy = (jax.random.normal(key, (batch, length, width), settings.dtype) for key in keys)
    least = {name: _score_bytes(batch, length, width) for name in ATTENTIONS}
    rows = []
    for pass_name in PASSES:
        contenders = {}
        for name in settings.mixers:
            mixer: Any = _mixer(name, width, settings)
            function = _pass(pass_name, mixer.apply)
            estimate = _estimate(previous.get((name, pass_name)), batch, length)
            arguments = (parameters[name], x), dy
            contenders[name] = Contender(function, arguments, estimate, least.get(name, 0))
        result = _race(contenders, f"D={width} L={length} {pass_name}", settings)
        for name, measured in result.rows.items():
            states = settings.state_size if name in SCANS else None
            row = _identity(name, (batch, length, width, states), pass_name) | measured
            median = row["median_ms"]
            row["tokens_per_second"] = median and batch * length / median * 1e3
            row["over_conv"] = _time_over(result, name, "conv")
            rows.append(row)
            if row["call_seconds"] is not None:
                previous[name, pass_name] = row
    return rows


def measure_scans(
    shape: tuple[int, ...], settings: Settings, rates: Amounts | None = None
) -> list[dict[str, Any]]:
    """Measures the three portable scans alone, with softplus and skip; returns their rows.

    A row has time and temporary memory, also relative to the chunked scan. That of the chunked scan
    has `bound` too: the least milliseconds of each kind of work, see
    `scan_bounds.bound_milliseconds`; and `of_bound`, the longest of them over its time. The time
    limit is not applied: a shape without its peers would say nothing.

    Args:
        shape: (B, L, D, N, G).
        settings: settings of the benchmark.
        rates: what the machine does per second; None: unknown, there are no bounds.
    """
    inputs, dy = _scan_inputs(shape, settings.dtype)
    bounds = {} if rates is None else bound_milliseconds(shape, dy.dtype.itemsize, rates)
    settings = settings._replace(limits=settings.limits._replace(seconds=math.inf))
    rows = []
    for pass_name in PASSES:
        contenders = {}
        for name in PORTABLE_SCANS:
            scan: Any = functools.partial(selective_scan, delta_softplus=True, implementation=name)
            contenders[name] = Contender(_pass(pass_name, scan), (inputs, dy))
        title = "scan B={} L={} D={} N={} G={} ".format(*shape) + pass_name
        result = _race(contenders, title, settings)
        chunked = result.rows["chunked"]["temp_bytes"]
        for name, measured in result.rows.items():
            row = _identity(name, shape[:4], pass_name) | {"groups": shape[4]} | measured
            row["time_over_chunked"] = _time_over(result, name, "chunked")
            own, median = row["temp_bytes"], row["median_ms"]
            row["memory_over_chunked"] = own / chunked if own and chunked else None
            row["bound"] = bound = bounds.get(pass_name) if name == "chunked" else None
            row["of_bound"] = max(bound.values()) / median if bound and median else None
            rows.append(row)
    return rows


class MapConv(nn.Module):
    """The mixer of `models.mambaout.GatedCNNBlock` for the tokens of a square map, row by row.

    Attributes:
        dtype: precision of the computation; None: that of the promoted inputs.
    """

    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        B, L, D = x.shape
        side = math.isqrt(L)
        if side**2 != L:
            raise ValueError(f"{L} tokens are not a square map; use {side**2} or {(side + 1) ** 2}")
        y = DepthwiseConv(_KERNEL_SIDE, dtype=self.dtype, name="conv")(x.reshape(B, side, side, D))
        return y.reshape(x.shape)


def _mixer(name: str, width: int, settings: Settings) -> nn.Module:
    dtype = compute_dtype(settings.dtype)
    if name == "conv":
        return MapConv(dtype)
    if name in SCANS:
        return SSM(settings.state_size, dt_rank_of(width), implementation=name, dtype=dtype)
    return MultiHeadSelfAttention(_heads(width), causal=name == "causal_attention", dtype=dtype)


def _heads(width: int) -> int:
    return max(1, width // _HEAD_WIDTH)


def _scan_inputs(shape: tuple[int, ...], dtype: str) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """u, delta (before softplus), A, B, C and D of a scan, as models have them, and dy."""
    batch, length, width, states, groups = shape
    keys = jax.random.split(jax.random.key(2), 5)
    u, dy = (jax.random.normal(key, (batch, length, width), dtype) for key in keys[:2])
    B, C = (jax.random.normal(key, (batch, length, groups, states), dtype) for key in keys[2:4])
    delta = jnp.log(jnp.expm1(jax.random.uniform(keys[4], u.shape, jnp.float32, 0.001, 0.1)))
    A = -jnp.broadcast_to(jnp.arange(1.0, states + 1)[None], (width, states))
    return (u, delta.astype(dtype), A, B, C, jnp.ones(width)), dy


def _pass(name: str, function: Callable[..., Array]) -> Callable[..., Any]:
    """A function of the inputs and dy that returns y, or y and the gradients of all inputs."""

    def forward(inputs, dy):
        return function(*inputs)

    def forward_backward(inputs, dy):
        y, vjp = jax.vjp(function, *inputs)
        return y, *vjp(dy)

    return forward if name == "forward" else forward_backward


def _race(contenders: dict[str, Contender], title: str, settings: Settings) -> Race:
    report_progress(title)
    return race(contenders, rounds=settings.rounds, limits=settings.limits)


def _identity(name: str, shape: tuple[Any, ...], pass_name: str) -> dict[str, Any]:
    batch, length, width, states = shape
    return {
        "mixer": name,
        "width": width,
        "length": length,
        "batch": batch,
        "state_size": states,
        "pass": pass_name,
    }


def _time_over(result: Race, name: str, baseline: str) -> float | None:
    """A contender's time over that of the baseline, median over rounds."""
    times = result.milliseconds
    if name not in times or baseline not in times:
        return None
    return speedup(times[name], times[baseline])["median"]


def _estimate(row: dict[str, Any] | None, batch: int, length: int) -> float | None:
    """Seconds that a call should take, from a row of a shorter length.

    A token costs the same at every length, except in attention, where its cost grows with the
    number of tokens.
    """
    if row is None:
        return None
    seconds = row["call_seconds"] if row["median_ms"] is None else row["median_ms"] / 1e3
    pairs = length / row["length"] if row["mixer"] in ATTENTIONS else 1
    return seconds * pairs * batch * length / (row["batch"] * row["length"])


def _score_bytes(batch: int, length: int, width: int) -> int:
    """Bytes of the float32 scores of attention.

    XLA:CPU may fuse the two products of attention into a library call, whose memory its plan leaves
    out. Measured, that memory is as large as the scores.
    """
    return batch * _heads(width) * length**2 * 4
