# SPDX-License-Identifier: Apache-2.0
"""The one loop over a set: every example counts exactly once, on any devices and processes.

Training, `evaluate`, the suites and the assessment of weights all go through `Evaluator`. What is
measured is the task's: a partial result of a batch is any pytree, merged as the loop goes.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mambaout_jax.config import Config, validate_evaluation_batch
from mambaout_jax.data.loader import EvaluationView, evaluation_batches
from mambaout_jax.data.sets.identity import changes, class_changes, identity
from mambaout_jax.data.sets.sources import Source
from mambaout_jax.paths import workdir_path
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.runtime.files import read_json
from mambaout_jax.runtime.mesh import place, platform_of, put_batch, replicated
from mambaout_jax.runtime.workdir import run_copy
from mambaout_jax.tasks.setup import Setup, set_up
from mambaout_jax.tasks.task import Batch, Objective, Partial, Task

_LOG = logging.getLogger("mambaout_jax")

# Partial results on the host before they are merged: bounds memory, spares most of the merging.
_MERGED_AT_ONCE = 32


class Evaluator:
    """Evaluates variables of a model on sets; one compiled program per shape of batch.

    Args:
        config: reads `evaluation.batch_size` and `data`.
        mesh: over all devices of all processes.

    Raises:
        ValueError: the evaluation batch does not divide among the devices.
    """

    def __init__(self, model: nn.Module, task: Objective, config: Config, mesh: Mesh):
        validate_evaluation_batch(config, mesh.size)
        self._task, self._config, self._mesh = task, config, mesh
        self._step = make_evaluate_step(model, task, mesh)

    def partials(
        self,
        variables: Mapping[str, Any],
        source: Source,
        view: EvaluationView | None = None,
    ) -> dict[str, Partial]:
        """The task's partial result over a whole set, for several variables in one reading.

        Args:
            variables: variables of the model, on the mesh, by any name.
            source: the set. Every process must give the same.
            view: how examples become arrays; None for the task's own.

        Returns:
            By these names, in numpy, the same in every process.
        """
        totals = {name: _Total(self._task.merge) for name in variables}
        batches = evaluation_batches(
            self._config,
            source,
            view or self._task.evaluation_view(),
            groups=self._task.groups(source),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            for batch in batches:
                on_device = put_batch(batch, self._mesh)
                for name, total in totals.items():
                    total.add(self._step(variables[name], on_device))
        return {name: total.result() for name, total in totals.items()}

    def metrics(self, variables: Mapping[str, Any], source: Source) -> dict[str, float]:
        """The task's metrics over a whole set, called `<name of the variables>/<metric>`."""
        partials, task = self.partials(variables, source), self._task.measured_on(source)
        return {
            f"{name}/{metric}": value
            for name, partial in partials.items()
            for metric, value in task.metrics(partial).items()
        }


def make_evaluate_step(
    model: nn.Module, task: Objective, mesh: Mesh
) -> Callable[[Mapping[str, Any], Batch], Partial]:
    """Jits `(variables, loaded batch) -> partial result`, which every device then holds."""

    def step(variables: Mapping[str, Any], batch: Batch) -> Partial:
        variables = jax.lax.with_sharding_constraint(variables, replicated(mesh))
        return task.evaluate(model, variables, task.prepare(batch, None))

    options = to_run_fast(platform_of(mesh))
    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=options)


def evaluate(config: Config, workdir: str | Path) -> dict[str, float]:
    """Evaluates the newest checkpoint of a training run on the validation set.

    Args:
        config: the run's; it has to fit the devices here, so `mesh.fsdp` may be another.
        workdir: the run's, a path or an address in a bucket.

    Returns:
        `step`, and metrics such as `eval/top1` in percent; `eval_ema/…` for the averaged weights,
        where the run keeps them.

    Raises:
        FileNotFoundError: the workdir holds no checkpoint.
        ValueError: the checkpoint is of another model than the config names, or the data have other
            classes than the run's.
        FloatingPointError: a metric is not finite.
    """
    with run_copy(workdir_path(workdir)) as folder:
        return _evaluate(config, folder)


def _evaluate(config: Config, workdir: Path) -> dict[str, float]:
    setup = set_up(config)
    _check_meaning(setup.task, workdir)
    restored = read_checkpoint(workdir / "checkpoints")
    state = restored.state
    variables = {"params": state["params"], **state.get("collections", {})}
    _check_model(setup, variables, restored.step, workdir)
    weights = place(weights_by_name(variables, state.get("ema") or None), replicated(setup.mesh))
    evaluator = Evaluator(setup.model, setup.task, config, setup.mesh)
    if difference := changes(restored.meta["data"], identity(setup.train)):
        _LOG.warning(
            "the training data of %s have changed since: %s; images that were trained on may be "
            "among those held out now", workdir, difference
        )  # fmt: skip
    metrics = evaluator.metrics(weights, setup.validation)
    check_finite(metrics, workdir)
    return {"step": restored.step, **metrics}


def check_finite(outputs: Any, source: str | Path) -> None:
    """Checks what a model made of readable images.

    Args:
        outputs: pytree of numpy arrays or numbers.
        source: where the weights are from.

    Raises:
        FloatingPointError: one of them is NaN or infinite.
    """
    for leaf in jax.tree.leaves(outputs):
        array = np.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
            raise FloatingPointError(
                f"the outputs of {source} are not finite (NaN or infinite): its weights are "
                "damaged, or of a run that diverged; use an earlier checkpoint or another file"
            )


def weights_by_name(variables: dict[str, Any], ema: dict[str, Any] | None) -> dict[str, Any]:
    """What a run evaluates, by the names in its metrics: its weights, and their average if kept."""
    return {"eval": variables} if ema is None else {"eval": variables, "eval_ema": ema}


def format_metrics(metrics: Mapping[str, float]) -> str:
    """One line, such as "eval/loss 0.53  eval/top1 98.89"."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class _Total:
    """Partial results of a set, merged while the loop runs.

    Two batches may be under way on the devices: a host that runs further ahead only hoards batches.
    """

    def __init__(self, merge: Callable[[Sequence[Partial]], Partial]):
        self._merge = merge
        self._on_devices: list[Partial] = []
        self._fetched: list[Partial] = []

    def add(self, partial: Partial) -> None:
        self._on_devices.append(partial)
        if len(self._on_devices) > 1:
            self._fetch()

    def result(self) -> Partial:
        while self._on_devices:
            self._fetch()
        return self._merge(self._fetched)

    def _fetch(self) -> None:
        self._fetched.append(jax.tree.map(_widened, jax.device_get(self._on_devices.pop(0))))
        if len(self._fetched) == _MERGED_AT_ONCE:
            self._fetched = [self._merge(self._fetched)]


def _widened(leaf: np.ndarray) -> np.ndarray:
    """Floats and signed integers as 64 bits, in which sums over many batches stay exact."""
    leaf = np.asarray(leaf)
    wide = {"f": np.float64, "i": np.int64}.get(leaf.dtype.kind)
    return leaf if wide is None else leaf.astype(wide)


def _check_meaning(task: Task, workdir: Path) -> None:
    """Outputs that were trained to mean one thing are not evaluated as another."""
    for name, now in task.record().items():
        if not (workdir / name).is_file():
            continue
        before = read_json(workdir / name)
        if before == now:
            continue
        both_list = isinstance(before, list) and isinstance(now, list)
        difference = class_changes(before, now) if both_list else f"{before} there, {now} now"
        raise ValueError(
            f"the data are not those of {workdir / name}: {difference}; bring them back, or "
            "evaluate on other images with --data DIR, whose sub-folders are found by their names"
        )


def _check_model(setup: Setup, variables: dict[str, Any], step: int, workdir: Path) -> None:
    image = jax.ShapeDtypeStruct((1, *setup.image_shape), "float32")
    wanted = jax.eval_shape(setup.model.init, jax.random.key(0), image)
    if jax.tree.map(lambda x: x.shape, wanted) != jax.tree.map(lambda x: x.shape, variables):
        raise ValueError(
            f"the checkpoint of step {step} in {workdir} holds another model than "
            f"{setup.config.model.name} with {setup.task.describe()}; evaluate it with its own "
            f"config, {workdir / 'config.json'}"
        )
