# SPDX-License-Identifier: Apache-2.0
"""Fair timing: contenders take turns, so that a busy machine slows them all alike."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """The machine and the versions that numbers belong to."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "device_count": jax.device_count(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def interleaved_milliseconds(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, calls_per_round: int
) -> dict[str, list[float]]:
    """Times A, B, A, B, ... after one warm-up of each.

    Args:
        calls: name → function without arguments that returns JAX arrays.
        rounds: how often each has its turn.
        calls_per_round: calls in a row per turn; only the last is waited for, so that the cost of
            dispatching overlaps as it does in a training loop.

    Returns:
        Name → milliseconds per call, one number per round.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(calls_per_round):
                result = call()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / calls_per_round * 1e3)
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of one contender's rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speedup(baseline: list[float], contender: list[float]) -> dict[str, float]:
    """Summary of baseline / contender, taken round by round: above 1 the contender is faster."""
    return summary([b / c for b, c in zip(baseline, contender, strict=True)])
