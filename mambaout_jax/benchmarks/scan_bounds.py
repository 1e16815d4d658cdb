# SPDX-License-Identifier: Apache-2.0
"""The least time of a bare selective scan: the work in it, over what the machine does per second.

The work is that of the chunked algorithm with softplus, skip and all gradients, as if nothing were
computed or moved twice: a token is read once, states stay in registers, and those of a chunk in
cache. Per token and channel, of which there are E = B·L·D, with items of s bytes:

                exponentials   multiply-adds   bytes
    forward     N + 2          4N + 4          3s: u, delta, y
    backward    N + 2          11N + 10        5s: u, delta, dy, du, ddelta

The backward pass computes δ and rebuilds the states once more. Softplus is an exponential and a
logarithm, taken for a second exponential. A lone product, sum, maximum or division is taken for a
multiply-add. Of these a state needs

    forward     δA, B·δu, h, and its share of y
    backward    δA, B·δu, h, and its share of dC; C·dy + dh, exp(δA) times that, h times that, and
                its shares of d(δu), dA, dδ, dB

and a channel, forward and backward, δu and two for softplus, then D·u, or the derivative of
softplus (three), du (two), dδ and dD.

B and C are read in both passes (2s·B·L·G·N bytes each time), their gradients written in float32
(8·B·L·G·N). One float32 state per 64 tokens is written and read again for the backward pass
(8·E·N/64), and belongs to it here.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mambaout_jax.benchmarks.timing import (
    call_seconds,
    interleaved_milliseconds,
    plan_turns,
    report_progress,
)
from mambaout_jax.runtime.compiler_options import to_run_fast

_CHUNK = 64  # tokens from one saved state to the next
_STATE_BYTES = 4
_SHORT = {"exponentials": "exp", "multiply_adds": "FMA", "bytes": "copy"}

# What is measured of the machine.
_ITEMS_PER_CORE = 2**15  # with the result 256 KiB: in the second cache of nearly any CPU
# Per item. Independent of each other, many are under way at once.
_EXPONENTIALS = 32
_CHAINS, _STEPS = 8, 32  # of multiply-adds
_COPIED = 2**29  # bytes of the array that is copied, more than the caches hold


class Amounts(NamedTuple):
    """Work of a scan, or what a machine does per second."""

    exponentials: float
    multiply_adds: float
    bytes: float


def count_work(shape: tuple[int, ...], itemsize: int) -> dict[str, Amounts]:
    """Work of the two passes, by name: "forward" and "backward".

    Args:
        shape: (B, L, D, N, G).
        itemsize: bytes of an item of u, delta, B, C and of their cotangents.
    """
    B, L, D, N, G = shape
    E = B * L * D
    weights = B * L * G * N  # items of B, and of C
    states = 2 * _STATE_BYTES * E * N / _CHUNK
    return {
        "forward": Amounts((N + 2) * E, (4 * N + 4) * E, 3 * itemsize * E + 2 * itemsize * weights),
        "backward": Amounts(
            (N + 2) * E,
            (11 * N + 10) * E,
            5 * itemsize * E + (2 * itemsize + 2 * _STATE_BYTES) * weights + states,
        ),
    }


def bound_milliseconds(
    shape: tuple[int, ...], itemsize: int, rates: Amounts
) -> dict[str, dict[str, float]]:
    """The least time of each kind of work, for "forward" and "forward+backward".

    The longest of the three is a bound. Where exponentials are made of multiply-adds, as on CPUs,
    it cannot quite be reached.

    Args:
        shape, itemsize: as in `count_work`.
        rates: what the machine does per second.
    """
    forward, backward = count_work(shape, itemsize).values()
    both = Amounts(*map(sum, zip(forward, backward, strict=True)))
    return {
        name: {
            kind: amount / rate * 1e3
            for kind, amount, rate in zip(Amounts._fields, work, rates, strict=True)
        }
        for name, work in (("forward", forward), ("forward+backward", both))
    }


def measure_rates(rounds: int, memory: int) -> Amounts | None:
    """What a CPU does per second, on all cores and compiled as the scans are: the best round.

    Args:
        rounds: how many turns each measurement has.
        memory: bytes that may be used.

    Returns:
        Exponentials and multiply-adds of an array in the cache, and bytes read and written by the
        copy of one that is too large for it, into memory that is there already. None if that takes
        more memory.
    """
    if memory < 2 * _COPIED:
        return None
    report_progress("exponentials, multiply-adds and bytes per second")
    items = _ITEMS_PER_CORE * (os.cpu_count() or 1)
    x = jnp.linspace(0, 1, items)
    jit = functools.partial(jax.jit, compiler_options=to_run_fast("cpu"))
    calls = {
        "exponentials": functools.partial(jit(_exponentials), x),
        "multiply_adds": functools.partial(jit(_multiply_adds), x, 0.5, 0.25),
        "bytes": _copy_call(),
    }
    work = Amounts(_EXPONENTIALS * items, _CHAINS * _STEPS * items, 2 * _COPIED)
    turns = plan_turns({name: call_seconds(call) for name, call in calls.items()})
    times = interleaved_milliseconds(calls, rounds=rounds, **turns)
    seconds = (min(times[kind]) / 1e3 for kind in Amounts._fields)
    return Amounts(*(amount / value for amount, value in zip(work, seconds, strict=True)))


def describe_rates(rates: dict[str, float] | None) -> str:
    """The line about the rates of a result of `scan.run`."""
    if rates is None:
        return f"no bounds: they are for CPUs, and need {2 * _COPIED:,} bytes to be measured"
    return (
        "{exponentials:.2e} exponentials, {multiply_adds:.2e} multiply-adds and {bytes:.2e} bytes "
        "of a copy per second"
    ).format(**rates)


def describe_bound(row: dict[str, Any]) -> str:
    """The words about the bound of a row of `scan_mixers.measure_scans`; "" if it has none.

    With one state per channel, where a scan does little with what it reads, the copy is mentioned
    in any case.
    """
    if row["of_bound"] is None:
        return ""
    bound = row["bound"]
    longest = max(bound, key=bound.get)
    kinds = dict.fromkeys((longest, "bytes") if row["state_size"] == 1 else (longest,))
    return "bound " + ", ".join(
        f"{_SHORT[kind]} {bound[kind]:.2f} ms ({100 * bound[kind] / row['median_ms']:.0f} %)"
        for kind in kinds
    )


def _exponentials(x):
    return sum(jnp.exp(-n * x) for n in range(1, _EXPONENTIALS + 1))


def _multiply_adds(x, a, b):
    chains = [n * x for n in range(1, _CHAINS + 1)]
    for _ in range(_STEPS):
        chains = [a * y + b for y in chains]
    return sum(chains)


def _copy_call() -> Callable[[], jax.Array]:
    """A call that reads one array and writes into another, which it returns."""
    source = jnp.ones(_COPIED // 4)
    target = [jnp.zeros_like(source)]
    # XLA would leave out a sum with 0.
    copy = jax.jit(lambda source, target: source + 1, donate_argnums=1, keep_unused=True)

    def call():
        target[0] = copy(source, target[0])
        return target[0]

    return call
