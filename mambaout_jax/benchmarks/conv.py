# SPDX-License-Identifier: Apache-2.0
"""How much faster is the shift form of the depthwise convolution than XLA's own?

The four stages of MambaOut-Tiny at 224 pixels, 7x7 kernels; forward alone and with gradients.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mambaout_jax.benchmarks.timing import (
    environment,
    find_device,
    interleaved_milliseconds,
    speedup,
    summary,
)
from mambaout_jax.kernels.depthwise_conv import depthwise_conv

STAGES = ((56, 96), (28, 192), (14, 384), (7, 576))  # map side, channels
KERNEL_SIDE = 7
QUICK = {"stages": STAGES[2:], "batch_size": 2, "rounds": 2}  # arguments of `run`, to see it run


def run(
    *,
    stages: Sequence[tuple[int, int]] = STAGES,
    batch_size: int = 8,
    dtype: str = "float32",
    rounds: int = 7,
    device: str | None = None,
) -> dict[str, Any]:
    """Times `"shift"` against `"lax"`.

    Args:
        stages: (side, channels) of the maps.
        batch_size: images per call.
        dtype: of maps and kernels.
        rounds: turns of each implementation; the numbers reported are medians over them.
        device: "cpu", "gpu" or "tpu"; None: JAX's default.

    Returns:
        A JSON-able dict: `environment`, the arguments, and `rows`, one per stage and pass, with
        milliseconds, compile seconds, the speedup of shift over lax (median, min and max over
        rounds) and the largest difference of their results, relative to the largest value.

    Raises:
        ValueError: there is no such device.
    """
    place = find_device(device)
    rows = []
    with jax.default_device(place):
        for side, channels in stages:
            shape = (batch_size, side, side, channels)
            for name, function in (("forward", _forward), ("forward+backward", _forward_backward)):
                race = _race(function, shape, dtype, rounds)
                rows.append({"shape": list(shape), "pass": name} | race)
    return {
        "environment": environment(place),
        "batch_size": batch_size,
        "dtype": dtype,
        "rounds": rounds,
        "rows": rows,
    }


def save(result: dict[str, Any], path: Path) -> list[Path]:
    """Writes what `run` returned as JSON; the paths of the files."""
    path.write_text(json.dumps(result, indent=2) + "\n")
    return [path]


def print_table(result: dict[str, Any]) -> None:
    """Prints what `run` returned, medians over rounds."""
    device = result["environment"]
    print(f"{device['device']} ({device['platform']}), jax {device['jax']}, {result['dtype']}")
    print(f"{'shape':<20}{'pass':<18}{'lax ms':>9}{'shift ms':>10}{'speedup (min-max)':>22}")
    for row in result["rows"]:
        shape = "x".join(map(str, row["shape"]))
        lax, shift = (row["milliseconds"][name]["median"] for name in ("lax", "shift"))
        ratio = "{median:.1f}x ({min:.1f}-{max:.1f})".format(**row["speedup"])
        print(f"{shape:<20}{row['pass']:<18}{lax:>9.2f}{shift:>10.2f}{ratio:>22}")


def _forward(x, kernel, dy, *, implementation):
    return depthwise_conv(x, kernel, implementation=implementation)


def _forward_backward(x, kernel, dy, *, implementation):
    y, vjp = jax.vjp(functools.partial(depthwise_conv, implementation=implementation), x, kernel)
    return y, *vjp(dy)


def _race(function: Callable, shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (KERNEL_SIDE, KERNEL_SIDE, shape[-1]), dtype)
    calls, compile_seconds = {}, {}
    for name in ("lax", "shift"):
        start = time.perf_counter()
        compiled = jax.jit(functools.partial(function, implementation=name)).lower(x, kernel, dy)
        calls[name] = functools.partial(compiled.compile(), x, kernel, dy)
        compile_seconds[name] = time.perf_counter() - start
    times = interleaved_milliseconds(calls, rounds=rounds, calls_per_round=3)
    return {
        "milliseconds": {name: summary(values) for name, values in times.items()},
        "compile_seconds": compile_seconds,
        "speedup": speedup(times["lax"], times["shift"]),
        "difference": _difference(calls["lax"](), calls["shift"]()),
    }


def _difference(expected: Any, actual: Any) -> float:
    def relative(a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return float(jnp.abs(a - b).max() / jnp.abs(a).max())

    return max(map(relative, jax.tree.leaves(expected), jax.tree.leaves(actual)))
