# SPDX-License-Identifier: Apache-2.0
"""Evaluation: every validation example counts exactly once, on any number of devices."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mambaout_jax.config import Config
from mambaout_jax.data.loader import evaluation_batches
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.mesh import put_batch, replicated
from mambaout_jax.train.setup import Setup, set_up
from mambaout_jax.train.step import make_evaluate_step

Evaluator = Callable[[dict[str, Any], dict[str, Any] | None], dict[str, float]]


def evaluate(config: Config, workdir: str | Path) -> dict[str, float]:
    """Evaluates the newest checkpoint of a training run on the validation set.

    Args:
        config: of the run; it has to fit the devices here, so `mesh.fsdp` may be another.
        workdir: of the run.

    Returns:
        `step`, and metrics such as `eval/top1` in percent; `eval_ema/…` for the averaged weights,
        where the run keeps them.

    Raises:
        FileNotFoundError: the workdir holds no checkpoint.
        ValueError: the checkpoint is of another model than the config names.
    """
    setup = set_up(config)
    restored = read_checkpoint(Path(workdir) / "checkpoints")
    state = restored.state
    variables = {"params": state["params"], **state.get("collections", {})}
    image = jax.ShapeDtypeStruct((1, *setup.image_shape), "float32")
    wanted = jax.eval_shape(setup.model.init, jax.random.key(0), image)
    if jax.tree.map(lambda x: x.shape, wanted) != jax.tree.map(lambda x: x.shape, variables):
        raise ValueError(
            f"the checkpoint of step {restored.step} in {workdir} holds another model than "
            f"{config.model.name} with {setup.num_classes} classes; evaluate it with its own "
            f"config, {Path(workdir) / 'config.json'}"
        )
    # A jitted identity is the one way to place host arrays that is right with several processes.
    place = jax.jit(lambda x: x, out_shardings=replicated(setup.mesh))
    evaluator = make_evaluator(setup)
    metrics = evaluator(place(variables), place(state["ema"]) if state.get("ema") else None)
    return {"step": restored.step, **metrics}


def make_evaluator(setup: Setup) -> Evaluator:
    """Makes a function `(variables, ema) -> metrics` over the whole validation set.

    `ema` is the moving average of the variables or None; its metrics are called `eval_ema/…`.
    """
    step = make_evaluate_step(setup.model, setup.task, setup.config, setup.mesh)

    def evaluator(variables: dict[str, Any], ema: dict[str, Any] | None) -> dict[str, float]:
        sums: list[dict[str, Any]] = []
        ema_sums: list[dict[str, Any]] = []
        batches = evaluation_batches(
            setup.config,
            setup.validation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            for batch in batches:
                on_device = put_batch(batch, setup.mesh)
                sums.append(step(variables, on_device))
                if ema is not None:
                    ema_sums.append(step(ema, on_device))
        return {**_metrics(setup, "eval", sums), **_metrics(setup, "eval_ema", ema_sums)}

    return evaluator


def _metrics(setup: Setup, prefix: str, sums: list[dict[str, Any]]) -> dict[str, float]:
    if not sums:
        return {}
    fetched = jax.device_get(sums)
    total = {name: sum(float(batch[name]) for batch in fetched) for name in fetched[0]}
    return {f"{prefix}/{name}": value for name, value in setup.task.metrics(total).items()}
