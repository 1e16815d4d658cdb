# SPDX-License-Identifier: Apache-2.0
"""How many images per second, against PyTorch in the same process?

Measured are inference and a training step with AdamW. Where a model has a peer, both sides have the
same weights and images, and nothing is timed before their logits have been compared: timm's model,
channels last, eager and with torch.compile, or the authors' own code with its plain scan. Ours is
compiled as this library compiles its models, and may take part with several implementations of its
scan. All take turns, so that a busy machine slows them equally. Models of timm that this library
does not have can be yardsticks. PyTorch and timm are needed only where they take part.

A row of the result is a model and a pass. It has `images_per_second` and `milliseconds` of each
contender, and `speedup`, how many times faster ours is than each other one (round by round: median,
min, max); and of the contenders of which they are known

    compile_seconds        tracing, lowering and compiling, of ours
    temp_bytes             temporary memory as planned by the compiler, of ours
    torch_compile_seconds  the first call of a model compiled by torch
    torch_peak_bytes       all memory of a call of an eager model, on GPUs
    torch_compile_error    why torch.compile failed, if it did
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mambaout_jax.benchmarks.jax_models import OURS, Ours
from mambaout_jax.benchmarks.lineup import Entry, line_up
from mambaout_jax.benchmarks.throughput_plot import draw, points_of
from mambaout_jax.benchmarks.timing import (
    environment,
    find_device,
    ignore,
    interleaved_milliseconds,
    report_progress,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_models import Theirs, import_timm
from mambaout_jax.benchmarks.torch_peer import torch_device

MODELS = (
    "mambaout_femto",
    "mambaout_kobe",
    "mambaout_tiny",
    "mambaout_small",
    "mambaout_small_rw",
    "mambaout_base",
    "mambaout_base_short_rw",
    "mambaout_base_tall_rw",
    "mambaout_base_wide_rw",
    "mambaout_base_plus_rw",
)
YARDSTICKS = ("convnext_tiny", "vit_small_patch16_224")
PASSES = ("inference", "training")
QUICK = {"models": ("test_mambaout",), "image_size": 64, "rounds": 2, "compiled": False}

_PLAN = ("compile_seconds", "temp_bytes", "torch_compile_seconds", "torch_peak_bytes")
_CLASSES = 1000
_MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.2}  # between logits, in standard deviations


class _Settings(NamedTuple):
    """What all rows have in common; see `run`."""

    batch_size: int
    image_size: int
    dtype: str
    rounds: int
    passes: Sequence[str]
    compiled: bool


def run(
    *,
    models: Sequence[str] | None = None,
    batch_size: int = 8,
    image_size: int = 224,
    dtype: str = "float32",
    rounds: int = 5,
    passes: Sequence[str] = PASSES,
    scans: Sequence[str] = (),
    timm: bool = True,
    compiled: bool = True,
    official: Sequence[tuple[str, str]] = (),
    device: str | None = None,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Times models; progress is printed to the standard error.

    Args:
        models: names or patterns of our models, or timm's names; None: `MODELS` and, beside timm,
            `YARDSTICKS`.
        batch_size: images per call.
        image_size: pixels, height and width.
        dtype: precision of the computation on both sides; parameters are float32.
        rounds: how many turns each contender has; the numbers reported are medians over them.
        passes: those of `PASSES` to measure.
        scans: implementations of the scan to take part beside "auto", where a model has a scan.
        timm: whether timm's models take part, where it has them.
        compiled: whether torch.compile takes part; it takes minutes to compile on a CPU.
        official: families and checkouts of their official code, see `official_models`.
        device: "cpu", "gpu" or "tpu", None: JAX's default; PyTorch has the same, for a TPU the CPU.
        keep: called after every row with the result so far.

    Returns:
        A dict ready for JSON: `environment`, the arguments, and `rows`.

    Raises:
        ValueError: as `lineup.line_up`; the device is not there, or logits differ.
    """
    settings = _Settings(batch_size, image_size, dtype, rounds, passes, compiled)
    _check_passes(passes)
    jax_device = find_device(device)
    if models is None:
        models = (*MODELS, *YARDSTICKS) if timm else MODELS
    entries = line_up(models, image_size, scans=scans, timm=timm, official=official)
    peers = any(entry.peer for entry in entries)
    result: dict[str, Any] = {
        "environment": environment(jax_device) | (_torch_versions() if peers else {}),
        "batch_size": batch_size,
        "image_size": image_size,
        "dtype": dtype,
        "rounds": rounds,
        "rows": [],
    }
    where = torch_device(importlib.import_module("torch"), jax_device) if peers else None
    with jax.default_device(jax_device):
        for entry in entries:
            for row in _measure(entry, settings, where):
                result["rows"].append(row)
                keep(result)
    return result


def save(result: dict[str, Any], path: Path) -> list[Path]:
    """Writes the result of `run` as FILE.json, and as FILE.png its picture, if there are points.

    Returns:
        The paths.
    """
    files = save_json(result, path)
    if points_of(result):
        files.append(path.with_suffix(".png"))
        draw(result, files[-1])
    return files


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`: speeds, ours over each other contender, compilation, memory."""
    where = result["environment"]
    versions = ", ".join(f"{key} {where[key]}" for key in ("jax", "torch", "timm") if key in where)
    print(
        f"{where['device']} ({where['platform']}), {versions}; {result['dtype']}, batch "
        f"{result['batch_size']}, {result['image_size']} pixels; images/s, medians"
    )
    width = max((len(row["model"]) for row in result["rows"]), default=0) + 2
    for row in result["rows"]:
        speeds = "  ".join(
            f"{name} {speed['median']:.1f}" for name, speed in row["images_per_second"].items()
        )
        ratios = "  ".join(
            "ours / {}: {median:.2f}x ({min:.2f}-{max:.2f})".format(name, **ratio)
            for name, ratio in row["speedup"].items()
        )
        print(f"{row['model']:{width}}{row['pass']:11}{speeds}  {ratios}")
        for line in _plan_lines(row):
            print(f"  {line}")


def _check_passes(passes: Sequence[str]) -> None:
    if unknown := [name for name in passes if name not in PASSES]:
        raise ValueError(f"passes={unknown} are not known; allowed are {', '.join(PASSES)}")


def _plan_lines(row: dict[str, Any]) -> Iterator[str]:
    """Lines on compilation and memory, as far as these are known."""
    seconds = row["compile_seconds"] | row["torch_compile_seconds"]
    planned, peaks = row["temp_bytes"], row["torch_peak_bytes"]
    shares = {
        name: f" (ours {planned[OURS] / size:.2f} of it)"
        for name, size in planned.items()
        if name != OURS and size
    }
    for title, cells in (
        ("compilation", [f"{name} {value:,.1f} s" for name, value in seconds.items()]),
        (
            "temporary memory",
            [f"{name} {_mebibytes(size)}{shares.get(name, '')}" for name, size in planned.items()],
        ),
        ("memory in all", [f"{name} {_mebibytes(size)}" for name, size in peaks.items()]),
    ):
        if cells:
            yield f"{title}: " + "; ".join(cells)
    if "torch_compile_error" in row:
        yield f"torch.compile failed: {row['torch_compile_error']}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _measure(entry: Entry, settings: _Settings, device: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a model, one per pass.

    Raises:
        ValueError: contenders do not compute the same logits.
    """
    rng = np.random.default_rng(0)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    inputs = (rng.standard_normal(shape, np.float32), rng.integers(_CLASSES, size=shape[0]))
    theirs = ours = None
    if entry.peer is not None and device is not None:
        importlib.import_module("torch").manual_seed(0)
        theirs = Theirs(entry.peer(), *inputs, settings.dtype, device)
    if entry.ours:
        weights = None if theirs is None else theirs.state_dict()
        ours = Ours(entry.name, *inputs, settings.dtype, scans=entry.scans, state_dict=weights)
        logits = {} if theirs is None else {theirs.title: theirs.logits}
        check_logits(entry.name, logits | ours.logits, settings.dtype)
    for passed in settings.passes:
        report_progress(f"{entry.name} {passed}")
        plan: dict[str, Any] = {key: {} for key in _PLAN}
        calls = {} if ours is None else ours.calls(passed, plan)
        if theirs is not None:
            calls |= theirs.calls(passed, plan, compiled=settings.compiled)
        times = interleaved_milliseconds(calls, rounds=settings.rounds, calls_per_round=1)
        yield {"model": entry.name, "pass": passed} | _row(times, settings.batch_size) | plan


def check_logits(name: str, logits: dict[str, np.ndarray], dtype: str) -> None:
    """Raises ValueError unless all contenders have the logits of the first, up to rounding.

    Args:
        name: the model.
        logits: (B, K) by contender.
        dtype: of the computation.
    """
    (first, expected), *others = logits.items()
    for title, values in others:
        difference = float(np.abs(values - expected).max() / expected.std())
        if not difference <= _MAX_DIFFERENCE[dtype]:
            raise ValueError(
                f"the logits of {name} differ between {title!r} and {first!r} by {difference:.2g} "
                "standard deviations; the two do not compute the same"
            )


def _row(times: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """Speeds, times and ratios of contenders, from their milliseconds per call."""
    speeds = {
        name: summary([1e3 * batch_size / value for value in values])
        for name, values in times.items()
    }
    ratios = {
        name: speedup(values, times[OURS])
        for name, values in times.items()
        if OURS in times and name != OURS
    }
    milliseconds = {name: summary(values) for name, values in times.items()}
    return {"images_per_second": speeds, "milliseconds": milliseconds, "speedup": ratios}


def _torch_versions() -> dict[str, Any]:
    timm, torch = import_timm(), importlib.import_module("torch")
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "torch_threads": torch.get_num_threads(),
    }
