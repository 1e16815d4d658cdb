# SPDX-License-Identifier: Apache-2.0
"""The training and the evaluation step of a config, compiled for a machine of any kind."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mambaout_jax.aot.blank import open_or_blank
from mambaout_jax.aot.program import (
    at_peak,
    collectives,
    live_arrays,
    memory_over_steps,
    sizes,
    thinned,
)
from mambaout_jax.aot.targets import compiler_options, find_target
from mambaout_jax.config import Config
from mambaout_jax.evaluation.evaluator import make_evaluate_step
from mambaout_jax.runtime.mesh import batch_sharding
from mambaout_jax.tasks.setup import Setup, set_up
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.state import make_initialiser
from mambaout_jax.train.step import make_train_step

PROGRAMS = ("train", "evaluate")
_NAMED = 12  # arrays at the peak that a report lists
_POINTS = 500  # of the curve of memory, in a report
_TRIES = 6  # programs compiled to find the largest batch
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(
    config: Config, target: str, devices: Sequence[Any], program: str = "train"
) -> dict[str, Any]:
    """Compiles a step that a run of this config would compile on a machine, and reports on it.

    Args:
        config: a run's; its data need not be here if it names ImageNet, COCO or ADE20K.
        target: a key of `targets.TARGETS`.
        devices: the target's.
        program: one of `PROGRAMS`.

    Returns:
        A JSON-able dict: `program`, `batch_size`, `chips`, `fits`, `limit` in bytes, `bytes` as
        `program.sizes` (where it does not fit, what the compiler tells), `flops` and
        `bytes_accessed` of one device, `collectives`, `largest` arrays at the peak, `memory` over
        the program in at most 500 points, and `seconds` of compilation.

    Raises:
        ValueError: a setting is wrong for so many devices.
        RuntimeError: the program cannot be compiled, for another reason than its memory.
    """
    setup = set_up(config, devices=devices, open_set=open_or_blank)
    lowered = {"train": _lower_training, "evaluate": _lower_evaluation}[program](setup)
    batch_size = config.batch_size if program == "train" else config.evaluation.batch_size
    report: dict[str, Any] = {
        "program": program,
        "batch_size": batch_size,
        "chips": len(devices),
        "limit": find_target(target).memory,
    }
    began = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options(target))
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise RuntimeError(
                f"{config.model.name} cannot be compiled for target={target!r}: {error}"
            ) from error
        report |= {"fits": False, "bytes": needed, "collectives": {}, "largest": [], "memory": []}
        return report | {"seconds": time.perf_counter() - began}
    report["seconds"] = time.perf_counter() - began
    return report | _read(compiled, report["limit"])


def largest_batch(
    config: Config, target: str, devices: Sequence[Any], log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Finds the largest batch whose training step fits, by compiling it at some sizes.

    Memory rises with the batch along a line, but for what the compiler arranges differently; so
    a few programs tell where it ends, and each answer has been compiled.

    Returns:
        `batch_size`, the largest found to fit, 0 for none; `tried`, (batch, fits, peak bytes) each.

    Raises:
        ValueError: the target has no memory of its own to fill.
    """
    limit = find_target(target).memory
    if not limit:
        raise ValueError(f"target={target!r} has no limit that is known; choose a chip")
    unit = len(devices) * config.accumulate_steps
    tried: dict[int, tuple[bool, int]] = {}
    batch: int | None = max(unit, config.batch_size // unit * unit)
    while batch is not None and len(tried) < _TRIES:
        found = compile_step(_with_batch(config, batch), target, devices)
        tried[batch] = (found["fits"], found["bytes"]["peak"])
        verdict = "fits" if found["fits"] else "does not fit"
        log(f"batch {batch:,} {verdict}: {found['bytes']['peak'] / 2**30:.2f} GiB a chip")
        batch = _next_batch(tried, limit, unit)
    fitting = [size for size, (fits, _) in tried.items() if fits]
    return {
        "batch_size": max(fitting, default=0),
        "tried": [(size, fits, peak) for size, (fits, peak) in sorted(tried.items())],
    }


def _next_batch(tried: dict[int, tuple[bool, int]], limit: int, unit: int) -> int | None:
    """What to try next: where the line through the nearest sizes meets the limit; None: enough."""
    fits = max((size for size, (good, _) in tried.items() if good), default=0)
    over = min((size for size, (good, _) in tried.items() if not good), default=None)
    if over is None:  # as if memory rose in proportion, at most fourfold
        guess = min(4 * fits, int(fits * limit / tried[fits][1]))
        return max(guess // unit, fits // unit + 1) * unit
    low = tried[fits][1] if fits else 0
    rise = (tried[over][1] - low) / (over - fits)
    guess = int(fits + (limit - low) / rise) if rise > 0 else (fits + over) // 2
    guess = min(max(guess // unit, fits // unit + 1), over // unit - 1) * unit
    return guess if guess > fits else None


def _with_batch(config: Config, batch: int) -> Config:
    changed = ConfigDict(config)
    with changed.unlocked():
        changed.batch_size = batch
    return changed


def _lower_training(setup: Setup) -> Any:
    config = setup.config
    schedule = make_schedule(config.schedule, setup.resolved)
    rules = setup.task.parameter_rules(config.model.name)
    optimizer = make_optimizer(config.optimizer, schedule, rules)
    _, state = make_initialiser(setup, optimizer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(setup.model, setup.task, optimizer, config, setup.mesh, shardings)
    example = setup.task.training_view()(setup.train[0], np.random.default_rng(0))
    return step.lower(state, _batch_of(example, config.batch_size, setup))


def _lower_evaluation(setup: Setup) -> Any:
    config = setup.config
    optimizer = make_optimizer(
        config.optimizer,
        make_schedule(config.schedule, setup.resolved),
        setup.task.parameter_rules(config.model.name),
    )
    _, state = make_initialiser(setup, optimizer)
    step = make_evaluate_step(setup.model, setup.task, setup.mesh)
    example = setup.task.evaluation_view()(setup.validation[0])
    example |= {"index": np.int32(0), "mask": np.True_}
    return step.lower(state.variables, _batch_of(example, config.evaluation.batch_size, setup))


def _batch_of(example: dict[str, Any], size: int, setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = batch_sharding(setup.mesh)

    def batch(value):
        array = np.asarray(value)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct((size, *array.shape), dtype, sharding=sharding)

    return {name: batch(value) for name, value in example.items()}


def _read(compiled: Any, limit: int) -> dict[str, Any]:
    text, found = compiled.as_text(), sizes(compiled)
    arrays, steps = live_arrays(text)
    costs = compiled.cost_analysis() or {}
    return {
        "fits": not limit or found["peak"] <= limit,
        "bytes": found,
        "flops": costs.get("flops", 0.0),
        "bytes_accessed": costs.get("bytes accessed", 0.0),
        "collectives": collectives(text),
        "largest": [array._asdict() for array in at_peak(arrays, steps)[:_NAMED]],
        "memory": thinned(memory_over_steps(arrays, steps), _POINTS),
    }


def _needed(message: str) -> dict[str, int] | None:
    """What a program that does not fit needs, by the compiler's message; None: another fault."""
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    found = temporaries or used
    if found is None:
        return None
    needed = int(float(found[1]) * _UNITS[found[2]])
    return {"temporaries": needed, "peak": needed}
