# SPDX-License-Identifier: Apache-2.0
"""Trains every token mixer on every task: same data, updates, learning rate and MACs for all."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mambaout_jax.ablation.model import MIXERS, TokenModel, matched
from mambaout_jax.ablation.tasks import TOKEN_TASKS, TokenTask
from mambaout_jax.ablation.trainer import Recipe, Trainer
from mambaout_jax.analysis.cost import count, length_ratio
from mambaout_jax.benchmarks.timing import environment, interleaved_milliseconds, summary

SEES_THE_ANSWER = "not applicable: sees the answer"


class Plan(NamedTuple):
    """How a task is trained on.

    Attributes:
        options: arguments of its function in `tasks.TOKEN_TASKS`, but `train` and `test`.
        steps: updates.
        train: examples made; 0 where the task has its own.
        test: likewise.
    """

    options: Mapping[str, int]
    steps: int
    train: int = 0
    test: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """A size of the whole experiment.

    Attributes:
        plans: by name of the task.
        seeds: they decide initialisation and order of the examples; the data are the same for all.
        width, depth, kernel_size, state_size, heads: see `model.TokenModel`.
        expansion: channels of the gate over those of the block, of the costliest mixer.
        batch_size: examples per update.
        weight_decay: AdamW's; biases, norms, positions and the SSM's rates do not decay.
        learning_rate: peak, after a warm-up of a tenth; a half cosine follows, to 0.
        evaluations: points of a curve.
    """

    plans: Mapping[str, Plan]
    seeds: tuple[int, ...]
    width: int
    depth: int = 2
    kernel_size: int = 7
    state_size: int = 16
    heads: int = 2
    expansion: float = 8 / 3
    batch_size: int = 16
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    evaluations: int = 8


_TWO_SCANS = {"side": 48, "patch": 4}
_TWO_SCANS_LARGE = {"side": 96, "patch": 4, "classes": 10}

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        {
            "digits": Plan({}, 3),
            "next_pixel": Plan({}, 3),
            "copying": Plan({"length": 60, "items": 2, "symbols": 3}, 3, 48, 32),
            "recall": Plan({"length": 60, "pairs": 2, "keys": 4, "values": 3}, 3, 48, 32),
            "matching": Plan({"side": 32, "patch": 4, "classes": 3}, 3, 48, 32),
            "other_scan": Plan({"side": 32, "patch": 4, "classes": 3}, 3, 48, 32),
        },
        seeds=(0, 1),
        width=8,
        depth=1,
        state_size=4,
        evaluations=2,
    ),
    "small": Preset(
        {
            "recall": Plan({"length": 128, "pairs": 4, "keys": 8, "values": 8}, 2000, 32_000, 256),
            "other_scan": Plan(_TWO_SCANS | {"classes": 4}, 800, 8000, 256),
            "digits": Plan({}, 400),
            "next_pixel": Plan({}, 400),
            "matching": Plan(_TWO_SCANS | {"classes": 2}, 400, 4000, 256),
            "copying": Plan({"length": 128, "items": 2, "symbols": 4}, 1000, 16_000, 256),
        },
        seeds=(0, 1, 2),
        width=16,
    ),
    "full": Preset(
        {
            "digits": Plan({}, 4000),
            "next_pixel": Plan({}, 4000),
            "copying": Plan({"length": 1024, "items": 16, "symbols": 14}, 50_000, 100_000, 1024),
            "recall": Plan(
                {"length": 1024, "pairs": 32, "keys": 128, "values": 128}, 20_000, 100_000, 1024
            ),
            "matching": Plan(_TWO_SCANS_LARGE, 20_000, 20_000, 1024),
            "other_scan": Plan(_TWO_SCANS_LARGE, 20_000, 20_000, 1024),
        },
        seeds=(0, 1, 2, 3, 4),
        width=64,
        batch_size=64,
        learning_rate=2e-3,
        evaluations=20,
    ),
}


def build_models(task: TokenTask, preset: Preset) -> dict[str, TokenModel]:
    """The models that may be trained on a task, of equal MACs, by mixer."""
    models = {
        name: TokenModel(
            kind=name,
            sequence=task.autoregressive,
            num_classes=task.num_classes,
            dense=task.dense,
            width=preset.width,
            depth=preset.depth,
            hidden=int(preset.expansion * preset.width),
            kernel_size=preset.kernel_size,
            state_size=preset.state_size,
            heads=preset.heads,
        )
        for name, kind in MIXERS.items()
        if not (task.autoregressive and kind.looks_ahead)
    }
    return matched(models, (*task.grid, task.features))


def run_cell(
    model: TokenModel, task: TokenTask, preset: Preset, steps: int
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Trains one mixer on one task, once per seed.

    Returns:
        `mixer`, `hidden`, `parameters`, `macs` of one example, `compile_seconds` and `runs`, as
        `Trainer.train` returns them; and an update, to be timed.
    """
    cost = count(model, (*task.grid, task.features))
    recipe = Recipe(
        steps, preset.batch_size, preset.learning_rate, preset.weight_decay, preset.evaluations
    )
    trainer = Trainer(model, task, recipe)
    cell = {
        "mixer": model.kind,
        "hidden": model.hidden,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "compile_seconds": trainer.compile_seconds,
        "runs": [trainer.train(seed) for seed in preset.seeds],
    }
    return cell, trainer.repeated_update()


def run_task(name: str, preset: Preset, log: Callable[[str], None]) -> dict[str, Any]:
    """Trains all mixers on one task, then times their updates in turns.

    Returns:
        What the task is (`name`, `length`, `length_ratio`, `long`, `autoregressive`, `dense`,
        `chance`, `options`, `train`, `test`, `steps`) and its `cells`, one per mixer: of
        `run_cell`, with `step_milliseconds` (median, min and max over turns); or `mixer` and the
        `reason` why it is not run.
    """
    plan = preset.plans[name]
    made = {"train": plan.train, "test": plan.test} if plan.train else {}
    task = TOKEN_TASKS[name](**plan.options, **made)
    models = build_models(task, preset)
    cells: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], Any]] = {}
    for mixer in MIXERS:
        if mixer not in models:
            cells.append({"mixer": mixer, "reason": SEES_THE_ANSWER})
            continue
        cell, calls[mixer] = run_cell(models[mixer], task, preset, plan.steps)
        cells.append(cell)
        accuracies = " ".join(f"{100 * run['accuracy']:5.1f} %" for run in cell["runs"])
        seconds = sum(run["seconds"] for run in cell["runs"])
        log(f"{name:16} {mixer:24} {accuracies}  {seconds:.0f} s")
    times = interleaved_milliseconds(calls, rounds=7, calls_per_round=5)
    for cell in cells:
        if cell["mixer"] in times:
            cell["step_milliseconds"] = summary(times[cell["mixer"]])
    ratio = length_ratio(task.length, preset.width)
    return {
        "name": name,
        "length": task.length,
        "length_ratio": ratio,
        "long": ratio > 1,
        "autoregressive": task.autoregressive,
        "dense": task.dense,
        "chance": task.chance,
        "options": dict(plan.options),
        "train": len(task.train.targets),
        "test": len(task.test.targets),
        "steps": plan.steps,
        "cells": cells,
    }


def run_grid(name: str, log: Callable[[str], None] = print) -> Iterator[dict[str, Any]]:
    """Trains every mixer on every task of a preset.

    Args:
        name: a key of `PRESETS`.
        log: takes a line after each cell.

    Yields:
        After each task all that there is so far, a JSON-able dict: `preset`, `settings`,
        `environment`, `seconds`, `tasks`, one dict of `run_task` each, and `missing`, the names of
        those still to come.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is not known; allowed are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    began = time.perf_counter()
    tasks = []
    settings = {
        field.name: getattr(preset, field.name)
        for field in dataclasses.fields(preset)
        if field.name != "plans"
    }
    for task in preset.plans:
        tasks.append(run_task(task, preset, log))
        yield {
            "preset": name,
            "settings": settings,
            "environment": environment(),
            "seconds": time.perf_counter() - began,
            "tasks": list(tasks),
            "missing": list(preset.plans)[len(tasks) :],
        }
