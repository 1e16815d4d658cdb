# SPDX-License-Identifier: Apache-2.0
"""Fair timing: contenders take turns, so that a busy machine slows all of them equally.

`interleaved_milliseconds` is the bare clock. `race` adds limits, for contenders that may be too
large or too slow: the row of one that is not measured says why.
"""

import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mambaout_jax.runtime.compiler_options import to_run_fast

_TURN_SECONDS = 0.02  # length of a turn of quick calls: many times the cost of reading the clock
_MAX_CALLS = 50  # per turn
_QUICK_SECONDS = 0.3  # turns of calls that take less begin with an untimed call
_MEMINFO = Path("/proc/meminfo")


class Contender(NamedTuple):
    """Attributes:
    function: will be compiled; returns arrays.
    arguments: arguments of the function, on the device to measure.
    estimate: seconds that a call is expected to take; None: unknown.
    least_temp: bytes of temporary memory that it is known to need, for compilers that plan less.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    estimate: float | None = None
    least_temp: int = 0


class Limits(NamedTuple):
    """Attributes:
    memory: bytes that a call may take: its arguments, results and temporary memory.
    seconds: time that all calls of one contender together may take.
    """

    memory: int
    seconds: float


class Race(NamedTuple):
    """Attributes:
    rows: by contender, as `race` describes them.
    milliseconds: time of a call in each round, by contender that was measured.
    """

    rows: dict[str, dict[str, Any]]
    milliseconds: dict[str, list[float]]


def environment(device: Any = None) -> dict[str, Any]:
    """The machine and the versions that numbers belong to.

    Args:
        device: the JAX device that is measured; None: JAX's default device.
    """
    if device is None:
        device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "device_count": jax.device_count(device.platform),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def save_json(result: dict[str, Any], path: Path) -> list[Path]:
    """Writes a benchmark's result as JSON; returns a list with the file's path.

    If the process is stopped meanwhile, the file that was there before stays as it was.
    """
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(json.dumps(result, indent=2) + "\n")
    draft.replace(path)
    return [path]


def ignore(result: dict[str, Any]) -> None:
    """Does nothing: the `keep` of a benchmark whose rows nobody wants before its end."""


def report_progress(title: str) -> None:
    """Prints what is measured now on the standard error; the standard output is for results."""
    print(f"{title} ...", file=sys.stderr, flush=True)


def find_device(platform: str | None) -> Any:
    """The first device of a platform.

    Args:
        platform: "cpu", "gpu" or "tpu"; None: JAX's default device.

    Raises:
        ValueError: JAX finds no such device.
    """
    if platform is None:
        return jax.devices()[0]
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError as error:
        raise ValueError(
            f"device={platform!r} is not there: {first_line(error)}; JAX's default here is "
            f"{jax.default_backend()!r}, and it finds others where jax[cuda13] or jax[tpu] is "
            "installed and JAX_PLATFORMS allows them"
        ) from error


def free_memory(device: Any) -> int:
    """Bytes that a measurement may take.

    On GPUs and TPUs that is the device's free memory; on CPUs it is two thirds of the free RAM,
    because the rest of the machine uses the same memory.

    Raises:
        ValueError: neither the device nor the machine reports its free memory.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform == "cpu" and _MEMINFO.is_file():
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 * 2 // 3
    if device.platform == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 // 3
    raise ValueError(
        f"{device.device_kind} does not report how much memory is free; give the memory limit"
    )


def interleaved_milliseconds(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    calls_per_round: int | Mapping[str, int],
    untimed: bool | Mapping[str, bool] = True,
) -> dict[str, list[float]]:
    """Times A, B, A, B, ... after one warm-up of each.

    Args:
        calls: by name, functions without arguments that return JAX arrays.
        rounds: how many turns each has.
        calls_per_round: calls in a row per turn, one number for all or numbers by name; only the
            last call is waited for, so that dispatching overlaps as it does in a training loop.
        untimed: whether a turn begins with a call that does not count, for all or by name.

    Returns:
        Milliseconds per call by name, one number per round.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: each contender needs at least 1")
    if isinstance(calls_per_round, int):
        calls_per_round = dict.fromkeys(calls, calls_per_round)
    if isinstance(untimed, bool):
        untimed = dict.fromkeys(calls, untimed)
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if untimed[name]:
                jax.block_until_ready(call())
            start = time.perf_counter()
            for _ in range(calls_per_round[name]):
                result = call()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / calls_per_round[name] * 1e3)
    return times


def call_seconds(call: Callable[[], Any]) -> float:
    """Seconds of the second call; the first may have to prepare something."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def plan_turns(seconds: Mapping[str, float]) -> dict[str, Any]:
    """`calls_per_round` and `untimed` for `interleaved_milliseconds`, from the seconds of a call.

    Turns of quick calls begin with one that does not count: right after a contender that returned
    much memory to the system, a call was seen to take 2.5 times as long as the next.
    """
    counts = {
        name: min(_MAX_CALLS, math.ceil(_TURN_SECONDS / value)) for name, value in seconds.items()
    }
    untimed = {name: value < _QUICK_SECONDS for name, value in seconds.items()}
    return {"calls_per_round": counts, "untimed": untimed}


def race(contenders: Mapping[str, Contender], *, rounds: int, limits: Limits) -> Race:
    """Compiles contenders, and times those that stay within the limits in turns.

    A row has the keys

        status           "measured", "too large", "too slow" or "error"
        note             why it was not measured: the bytes or seconds needed, or the error
        median_ms, min_ms, max_ms    milliseconds of a call, over rounds
        call_seconds     time that a call was expected to take, or took in a first trial
        temp_bytes       temporary memory, as planned by the compiler or known to be needed
        needed_bytes     the same with arguments and results
        compile_seconds  tracing, lowering and compiling

    whose values are None if the contender did not get that far.

    Args:
        contenders: by name.
        rounds: how many turns each has.
        limits: memory and time that a contender may take.
    """
    rows = {}
    calls = {}
    for name, contender in contenders.items():
        rows[name] = row = _empty_row()
        try:
            call = _compile(contender, row)
            if _affordable(row, call, contender.estimate, rounds, limits):
                calls[name] = call
        except Exception as error:  # if one contender fails, the others still run
            row |= _failure(error)
    turns = plan_turns({name: rows[name]["call_seconds"] for name in calls})
    try:
        times = interleaved_milliseconds(calls, rounds=rounds, **turns)
    except Exception as error:  # it is unknown whose it is: each of them ran before
        for name in calls:
            rows[name] |= _failure(error)
        return Race(rows, {})
    for name, values in times.items():
        numbers = {f"{key}_ms": value for key, value in summary(values).items()}
        rows[name] |= {"status": "measured"} | numbers
    return Race(rows, times)


def summary(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest value of one contender's rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speedup(baseline: list[float], contender: list[float]) -> dict[str, float]:
    """Summary of baseline / contender, round by round; above 1 the contender is faster."""
    return summary([b / c for b, c in zip(baseline, contender, strict=True)])


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _empty_row() -> dict[str, Any]:
    numbers = ("median_ms", "min_ms", "max_ms", "call_seconds")
    plan = ("temp_bytes", "needed_bytes", "compile_seconds")
    return {"status": "error", "note": ""} | dict.fromkeys((*numbers, *plan))


def _failure(error: Exception) -> dict[str, str]:
    return {"status": "error", "note": first_line(error)}


def _compile(contender: Contender, row: dict[str, Any]) -> Callable[[], Any]:
    start = time.perf_counter()
    options = to_run_fast(jnp.zeros(()).device.platform)  # as models are compiled
    jitted = jax.jit(contender.function, compiler_options=options)
    compiled = jitted.lower(*contender.arguments).compile()
    row["compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this platform's compiler does not report how much memory is needed")
    row["temp_bytes"] = max(memory.temp_size_in_bytes, contender.least_temp)
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes
    row["needed_bytes"] = row["temp_bytes"] + outside
    return functools.partial(compiled, *contender.arguments)


def _affordable(
    row: dict[str, Any],
    call: Callable[[], Any],
    estimate: float | None,
    rounds: int,
    limits: Limits,
) -> bool:
    """Whether a call fits into memory and all calls into the time; completes the row."""
    if row["needed_bytes"] > limits.memory:
        note = f"needs {row['needed_bytes']:,} bytes, and {limits.memory:,} may be used"
        row |= {"status": "too large", "note": note}
        return False
    calls = rounds + 2  # the trial, the warm-up and a call each round
    seconds = estimate
    if seconds is None or calls * seconds <= limits.seconds:
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds = time.perf_counter() - start
    row["call_seconds"] = seconds
    total = calls * seconds
    if total > limits.seconds:
        note = f"would take {total:,.3g} s for {calls} calls, and {limits.seconds:g} s may be used"
        row |= {"status": "too slow", "note": note}
        return False
    return True
