# SPDX-License-Identifier: Apache-2.0
"""The training run: config → data → model → state → steps → checkpoints and metrics.

Order after every update: report, evaluate, save, stop if asked to. The metrics of an update are
therefore on disk before a checkpoint of it is, and a run that is killed and started again writes
what an uninterrupted one would have written.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mambaout_jax.config import Config
from mambaout_jax.evaluation.evaluator import Evaluator, format_metrics, weights_by_name
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.runtime.mesh import place, put_batch
from mambaout_jax.tasks.setup import Setup, pretrained_variables, set_up
from mambaout_jax.train.interval import Interval
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.preemption import Preempted, PreemptionGuard
from mambaout_jax.train.progress import Progress
from mambaout_jax.train.reader import Reader, identity
from mambaout_jax.train.record import check_nothing_foreign, check_same_run, record_run
from mambaout_jax.train.state import TrainState, make_initialiser
from mambaout_jax.train.step import make_train_step
from mambaout_jax.train.writer import MetricWriter, NullWriter, WandbSettings


def train(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains as the config says, or resumes where an earlier call with this workdir stopped.

    Args:
        config: made from `config.default_config()`.
        workdir: gets `config.json`, `environment.json`, `metrics.jsonl` and `checkpoints/`.

    Returns:
        `step` and the final metrics, such as `eval/top1` in percent.

    Raises:
        ValueError: a setting is wrong, or the workdir holds a run with other settings.
        FileExistsError: the workdir holds files of another origin under the names of a run's.
        FileNotFoundError, RuntimeError: the pretrained weights are not there or cannot be read.
        FloatingPointError: the loss or its gradient became NaN or infinite; names the update and
            the last good checkpoint.
        RuntimeError: more training examples are unreadable than the config allows.
        Preempted: SIGTERM or SIGINT came; the state is saved, the same call resumes from it.
    """
    workdir = Path(workdir).absolute()
    setup = set_up(config)
    check_nothing_foreign(workdir, setup.task.record())
    check_same_run(config, workdir)
    weights = _starting_weights(setup, workdir)  # which may be refused: before anything is made
    resolved, is_main = setup.resolved, jax.process_index() == 0
    schedule = make_schedule(config.schedule, resolved)
    rules = setup.task.parameter_rules(config.model.name)
    optimizer = make_optimizer(config.optimizer, schedule, rules)
    init, abstract = make_initialiser(setup, optimizer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = make_train_step(setup.model, setup.task, optimizer, config, setup.mesh, shardings)
    evaluator = Evaluator(setup.model, setup.task, config, setup.mesh)

    def evaluation(state: TrainState) -> dict[str, float]:
        return evaluator.metrics(weights_by_name(state.variables, state.ema), setup.validation)

    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(PreemptionGuard())  # first: it outlasts the last save
        checkpointer = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep)
        )
        restored = checkpointer.restore(abstract)
        if restored is None:
            start = replaced = 0
            interval = Interval()
            state = _first_state(setup, init, shardings, weights)
        else:
            start = restored.step
            state = restored.state
            interval = Interval(**restored.meta["interval"])
            replaced = restored.meta["replaced"]
            _check_same_data(identity(setup.train), restored.meta["data"], workdir)
        if is_main:
            record_run(config, workdir, setup.task.record())
        writer = stack.enter_context(
            _metric_writer(config, workdir, start) if is_main else NullWriter()
        )
        progress = stack.enter_context(
            Progress(
                resolved.total_steps,
                start,
                config.batch_size,
                resolved.steps_per_epoch,
                quiet=not is_main,
            )
        )
        if restored is not None:
            progress.message(f"resuming from {checkpointer.directory / str(start)}")
        reader = stack.enter_context(
            Reader(config, setup.train, setup.task.training_view(), start, replaced)
        )

        metrics: dict[str, float] = {}
        if start >= resolved.total_steps:  # an earlier call has finished this run
            metrics = evaluation(state)
        pending: list[tuple[int, dict[str, jax.Array]]] = []
        for step in range(start + 1, resolved.total_steps + 1):
            batch = reader.next()
            progress.data_wait(reader.seconds)
            on_device = put_batch(batch, setup.mesh)
            with jax.transfer_guard("disallow"):
                state, sums = update(state, on_device)
            pending.append((step, sums))
            if len(pending) > 1:  # two updates may be under way: a host that runs further ahead
                jax.block_until_ready(pending[-2])  # only hoards batches
            progress.advance(step)

            last = step == resolved.total_steps
            stop = guard.requested(step) and not last
            report = last or step % resolved.log_every == 0
            evaluate = last or step % resolved.evaluate_every == 0
            save = last or stop or step % resolved.checkpoint_every == 0
            if report or evaluate or save:
                interval.add(pending, checkpointer)
                pending = []
                reader.check(step)
            if report:
                averages = interval.averages()
                speed = progress.report(step, {"loss": averages["loss"]})
                values = {
                    **averages,
                    "learning_rate": float(np.asarray(schedule(step - 1))),
                    "replaced_examples": reader.replaced,
                    **speed,
                }
                writer.write(step, {f"train/{name}": value for name, value in values.items()})
                interval = Interval()
            if evaluate:
                with progress.paused():
                    metrics = evaluation(state)
                writer.write(step, metrics)
                progress.message(f"step {step}/{resolved.total_steps}  {format_metrics(metrics)}")
            if save:
                meta = {
                    "interval": dataclasses.asdict(interval),
                    "replaced": reader.replaced,
                    "data": identity(setup.train),
                }
                with progress.paused():
                    checkpointer.save(step, state, meta)
            if stop:
                checkpointer.wait()
                raise Preempted(step, checkpointer.directory / str(step))
    return {"step": max(start, resolved.total_steps), **metrics}


def _starting_weights(setup: Setup, workdir: Path) -> dict[str, Any] | None:
    """Those that the config names, where there is nothing to resume."""
    if not setup.config.model.pretrained or any((workdir / "checkpoints").glob("*")):
        return None
    return pretrained_variables(setup)


def _first_state(
    setup: Setup,
    init: Callable[[jax.Array], TrainState],
    shardings: TrainState,
    weights: dict[str, Any] | None,
) -> TrainState:
    """Freshly initialised, or with the pretrained weights that the config names."""
    config = setup.config
    state = init(jax.random.key(config.seed))
    if not config.model.pretrained:
        return state
    weights = pretrained_variables(setup) if weights is None else weights
    return place(state.started_from(weights), shardings)


def _check_same_data(now: str, before: str, workdir: Path) -> None:
    """Update k reads examples by their numbers, which mean others once the set has changed."""
    if now != before:
        raise ValueError(
            f"{workdir} holds a run on {before}, and there are {now} now; bring the data back to "
            "resume that run, or train into another --workdir, from its weights with "
            "--config.model.pretrained"
        )


def _metric_writer(config: Config, workdir: Path, start: int) -> MetricWriter:
    wandb = WandbSettings(config.log.wandb_project, config.to_dict()) if config.log.wandb else None
    return MetricWriter(workdir, resume_step=start, tensorboard=config.log.tensorboard, wandb=wandb)
