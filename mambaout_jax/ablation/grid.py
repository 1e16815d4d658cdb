# SPDX-License-Identifier: Apache-2.0
"""Trains every token mixer on every task: same data, updates, learning rate and MACs for all."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mambaout_jax.ablation.model import MIXERS, TokenModel, encode, matched, rescale
from mambaout_jax.ablation.tasks import TASKS, UNSCORED, Examples, Task
from mambaout_jax.analysis.cost import count, length_ratio
from mambaout_jax.benchmarks.timing import environment, interleaved_milliseconds, summary
from mambaout_jax.models import mambaout
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.train.optimizer import decay_mask

SEES_THE_ANSWER = "not applicable: sees the answer"
_DECAY_RULES = ((r"/positions$", False), *mambaout.DECAY)


class Plan(NamedTuple):
    """How a task is trained on.

    Attributes:
        options: of its function in `tasks.TASKS`, but `train` and `test`.
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
        seeds: of initialisation and order of the examples; the data are the same for all.
        width, depth, kernel_size, state_size, heads: of `model.TokenModel`.
        expansion: channels of the gate over those of the block, of the costliest mixer.
        batch_size: examples per update.
        weight_decay: of AdamW; biases, norms, positions and the SSM's rates do not decay.
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


class State(NamedTuple):
    """Of a training: parameters and what Adam remembers."""

    params: Any
    optimizer: optax.OptState


class Trainer(NamedTuple):
    """One compiled program for all seeds of a cell.

    Attributes:
        start: key of the random numbers → state.
        step: state, inputs, targets → state, loss.
        evaluate: parameters, inputs, targets → sums over scored targets: loss, hits, count.
        compile_seconds: of `step`.
    """

    start: Callable[[jax.Array], State]
    step: Callable[..., tuple[State, Array]]
    evaluate: Callable[..., Float[Array, "3"]]
    compile_seconds: float


def build_models(task: Task, preset: Preset) -> dict[str, TokenModel]:
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


def scores(logits: Float[Array, "... K"], targets: Int[Array, "..."]) -> Float[Array, "3"]:
    """Sums over the scored targets: cross-entropy in nats, hits, count."""
    scored = targets != UNSCORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(scored, targets, 0))
    hits = logits.argmax(axis=-1) == targets
    sums = (jnp.where(scored, x, 0).sum() for x in (losses, hits, scored))
    return jnp.stack([x.astype(logits.dtype) for x in sums])


def build_trainer(model: TokenModel, task: Task, preset: Preset, steps: int) -> Trainer:
    """Compiles the update of a model."""
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(
            0.0, preset.learning_rate, max(1, steps // 10), max(2, steps)
        ),
        weight_decay=preset.weight_decay,
        mask=lambda params: decay_mask(params, _DECAY_RULES),
    )

    def start(key: jax.Array) -> State:
        params = rescale(model.init(key, jnp.zeros((1, *task.grid, task.features)))["params"])
        return State(params, optimizer.init(params))

    def sums(params, inputs, targets):
        logits: Any = model.apply({"params": params}, encode(inputs, task.vocabulary))
        return scores(logits, targets)

    def mean_loss(params, inputs, targets):
        loss, _, number = sums(params, inputs, targets)
        return loss / number

    def step(state, inputs, targets):
        loss, gradients = jax.value_and_grad(mean_loss)(state.params, inputs, targets)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer_state), loss

    state = jax.eval_shape(start, jax.random.key(0))
    batch = (x[: preset.batch_size] for x in task.train)
    began = time.perf_counter()
    options = to_run_fast(jax.default_backend())
    compiled = jax.jit(step, compiler_options=options).lower(state, *batch).compile()
    seconds = time.perf_counter() - began
    evaluate = jax.jit(sums, compiler_options=options)
    return Trainer(jax.jit(start), compiled, evaluate, seconds)


def train(trainer: Trainer, task: Task, preset: Preset, steps: int, seed: int) -> dict[str, Any]:
    """Trains one model and evaluates it on the way.

    Returns:
        `seed`, `seconds`, `accuracy` and `bits` at the end, and the `curve`: dicts of `step`,
        `train_bits` (mean since the last point), `bits` (cross-entropy on the test set, per
        scored target) and `accuracy` in [0, 1].
    """
    began = time.perf_counter()
    order = _order(np.random.default_rng(seed), len(task.train.targets), steps, preset.batch_size)
    state, curve, losses = trainer.start(jax.random.key(seed)), [], []
    points = {round(steps * (i + 1) / preset.evaluations) for i in range(preset.evaluations)}
    for number, rows in enumerate(order, start=1):
        state, loss = trainer.step(state, *(x[rows] for x in task.train))
        losses.append(loss)
        if number in points:
            point = {"step": number, "train_bits": float(np.mean(losses)) / math.log(2)}
            curve.append(point | evaluate(trainer, state.params, task.test, preset.batch_size))
            losses = []
    last = {name: curve[-1][name] for name in ("accuracy", "bits")}
    return {"seed": seed, "seconds": time.perf_counter() - began, **last, "curve": curve}


def evaluate(
    trainer: Trainer, params: Any, examples: Examples, batch_size: int
) -> dict[str, float]:
    """Accuracy and bits per scored target; every target counts once."""
    short = -len(examples.targets) % batch_size
    inputs, targets = (
        np.pad(x, ((0, short), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
        for x, fill in zip(examples, (0, UNSCORED), strict=True)
    )
    batches = range(0, len(targets), batch_size)
    sums = [
        trainer.evaluate(params, inputs[i : i + batch_size], targets[i : i + batch_size])
        for i in batches
    ]
    loss, hits, number = np.sum(np.asarray(sums, np.float64), axis=0)
    return {"bits": float(loss / number / math.log(2)), "accuracy": float(hits / number)}


def run_cell(
    model: TokenModel, task: Task, preset: Preset, steps: int
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Trains one mixer on one task, once per seed.

    Returns:
        `mixer`, `hidden`, `parameters`, `macs` of one example, `compile_seconds` and `runs`, as of
        `train`; and an update, to be timed.
    """
    cost = count(model, (*task.grid, task.features))
    trainer = build_trainer(model, task, preset, steps)
    cell = {
        "mixer": model.kind,
        "hidden": model.hidden,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "compile_seconds": trainer.compile_seconds,
        "runs": [train(trainer, task, preset, steps, seed) for seed in preset.seeds],
    }
    state = trainer.start(jax.random.key(0))
    batch = [x[: preset.batch_size] for x in task.train]
    return cell, lambda: trainer.step(state, *batch)


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
    task = TASKS[name](**plan.options, **made)
    models = build_models(task, preset)
    cells, calls = [], {}
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
    preset, began, tasks = PRESETS[name], time.perf_counter(), []
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


def _order(
    rng: np.random.Generator, examples: int, steps: int, batch_size: int
) -> Int[np.ndarray, "steps batch"]:
    """Rows of every batch: each example once, then each once more, in another order."""
    epochs = -(-steps * batch_size // examples)
    rows = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return rows[: steps * batch_size].reshape(steps, batch_size)
