# SPDX-License-Identifier: Apache-2.0
"""One cell of the grid: a mixer trained on a form of a task, at its own best learning rate."""

from typing import Any

from mambaout_jax.ablation.matching import (
    SEES_THE_ANSWER,
    arranged,
    build_model,
    can_run,
    macs,
)
from mambaout_jax.ablation.model import TokenModel
from mambaout_jax.ablation.presets import Preset
from mambaout_jax.ablation.trainer import Recipe, Trainer
from mambaout_jax.analysis.cost import count, length_ratio
from mambaout_jax.benchmarks.timing import interleaved_milliseconds, summary


def run_cell(preset: Preset, plan: str, mixer: str) -> dict[str, Any]:
    """Trains a mixer on a plan of a preset, at equal MACs.

    The first seed is trained at every learning rate; the rate that is best on the validation split,
    the smaller one of equals, then serves the other seeds. The test split chooses nothing.

    Returns:
        `mixer`; `width`, `depth`, `hidden`, `reach`, `parameters` and `macs` of the model;
        `compile_seconds`; `sweep`, the validation accuracy at each rate; `learning_rate`, the
        chosen one; `runs` at it, one per seed, as `Trainer.train` returns them. Or `mixer` and the
        `reason` why it is not run.
    """
    task = preset.make(plan)
    if not can_run(mixer, task):
        return {"mixer": mixer, "reason": SEES_THE_ANSWER}
    try:
        model = build_model(mixer, task, preset)
    except ValueError as error:
        return {"mixer": mixer, "reason": f"not run: {error}"}
    return _train(preset, plan, model)


def run_depth(preset: Preset, plan: str, mixer: str, depth: int) -> dict[str, Any]:
    """Trains a mixer with so many blocks, at the preset's width: deeper costs more.

    Returns:
        As `run_cell`.
    """
    task = preset.make(plan)
    return _train(preset, plan, arranged(mixer, task, preset, depth))


def describe_plan(preset: Preset, plan: str) -> dict[str, Any]:
    """What a form of a task is.

    Returns:
        `name`, `length`, `length_ratio` (L over 6 D), `long`, `autoregressive`, `dense`, `far`,
        `chance`, `options`, `train` and `test` (examples), `steps` and `learned`.
    """
    task = preset.make(plan)
    ratio = length_ratio(task.length, preset.width)
    return {
        "name": plan,
        "length": task.length,
        "length_ratio": ratio,
        "long": ratio > 1,
        "autoregressive": task.autoregressive,
        "dense": task.dense,
        "far": task.far,
        "chance": task.chance,
        "options": dict(preset.plans[plan].options),
        "train": len(task.train.targets),
        "test": len(task.test.targets),
        "steps": preset.plans[plan].steps,
        "learned": preset.plans[plan].learned,
    }


def time_updates(preset: Preset, plan: str, cells: list[dict[str, Any]]) -> None:
    """Times an update of every cell that was run, in turns, and writes `step_milliseconds` there.

    Median, smallest and largest of the turns, on all the machine has.
    """
    task = preset.make(plan)
    recipe = _recipe(preset, plan)._replace(steps=2)
    ran = {number: cell for number, cell in enumerate(cells) if "runs" in cell}
    calls = {
        str(number): Trainer(_model_of(cell, task, preset), task, recipe).repeated_update()
        for number, cell in ran.items()
    }
    times = interleaved_milliseconds(calls, rounds=7, calls_per_round=5)
    for number, cell in ran.items():
        cell["step_milliseconds"] = summary(times[str(number)])


def _model_of(cell: dict[str, Any], task: Any, preset: Preset) -> TokenModel:
    """The model that a cell was run with."""
    depth = cell.get("study_depth")
    model = arranged(cell["mixer"], task, preset, depth)
    return model.clone(width=cell["width"], hidden=cell["hidden"])


def _recipe(preset: Preset, plan: str) -> Recipe:
    steps = preset.plans[plan].steps
    return Recipe(steps, preset.batch_size, preset.weight_decay, preset.evaluations)


def _train(preset: Preset, plan: str, model: TokenModel) -> dict[str, Any]:
    task = preset.make(plan)
    trainer = Trainer(model, task, _recipe(preset, plan))
    first, *others = preset.seeds
    tried = [trainer.train(first, rate) for rate in sorted(preset.learning_rates)]
    best = max(tried, key=lambda run: run["validation"])
    rate = best["learning_rate"]
    runs = [best, *(trainer.train(seed, rate) for seed in others)]
    return {
        "mixer": model.kind,
        "width": model.width,
        "depth": len(model.dilations),
        "dilations": list(model.dilations),
        "hidden": model.hidden,
        "reach": model.reach,
        "parameters": count(model, (*task.grid, task.features)).parameters,
        "macs": macs(model, task),
        "compile_seconds": trainer.compile_seconds,
        "sweep": {f"{run['learning_rate']:g}": run["validation"] for run in tried},
        "learning_rate": rate,
        "runs": runs,
    }
