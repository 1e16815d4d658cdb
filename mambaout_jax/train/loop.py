# SPDX-License-Identifier: Apache-2.0
"""The training run: config → data → model → state → steps → checkpoints and metrics.

Order after every update: report, evaluate, save, stop if asked to. The metrics of an update are
therefore on disk before a checkpoint of it is, and a run that is killed and started again writes
what an uninterrupted one would have written.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from itertools import starmap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mambaout_jax.config import Config
from mambaout_jax.data.sets.identity import changes, identity
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.evaluation.evaluator import Evaluator, format_metrics, weights_by_name
from mambaout_jax.paths import workdir_path
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.runtime.lock import DirectoryLock
from mambaout_jax.runtime.mesh import place, put_batch
from mambaout_jax.runtime.processes import in_first_process
from mambaout_jax.runtime.workdir import run_folder
from mambaout_jax.tasks.setup import Setup, pretrained_variables, set_up
from mambaout_jax.train.interval import Interval, NotFiniteError
from mambaout_jax.train.log import log_file
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.preemption import Preempted, PreemptionGuard
from mambaout_jax.train.progress import Progress
from mambaout_jax.train.reader import Reader
from mambaout_jax.train.record import (
    CHECKPOINTS,
    SETTINGS,
    check_nothing_foreign,
    check_same_run,
    record_run,
)
from mambaout_jax.train.rollback import Skipped, roll_back
from mambaout_jax.train.state import TrainState, make_initialiser
from mambaout_jax.train.step import make_train_step
from mambaout_jax.train.writer import MetricWriter, NullWriter, WandbSettings


def train(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains as the config says, or resumes where an earlier call with this workdir stopped.

    Args:
        config: made from `config.default_config()`.
        workdir: a path, or an address in a bucket (gs://bucket/run, s3://bucket/run), into which
            only a run of one process can train. Gets `config.json`, `environment.json`,
            `metrics.jsonl`, `checkpoints/`, and where there is something to log `log.txt`;
            `run.lock` while the call lasts.

    Returns:
        `step` and the final metrics, such as `eval/top1` in percent.

    Raises:
        ValueError: a setting is wrong, or the workdir is another address or holds a run with other
            settings.
        FileExistsError: the workdir holds files of another origin under the names of a run's.
        FileNotFoundError, RuntimeError: the pretrained weights are not there or cannot be read.
        FloatingPointError: the loss or its gradient became NaN or infinite; names the update and
            the last good checkpoint.
        RuntimeError: another run is writing into the workdir, or more training examples are
            unreadable than the config allows.
        BucketError: the bucket cannot be read, or the last state cannot be written to it.
        SaveError: a checkpoint could not be written.
        UnreadableImageError: an image of the validation set is; the state is saved before.
        Preempted: SIGTERM or SIGINT came; the state is saved, the same call resumes from it.
    """
    workdir = workdir_path(workdir)
    setup = set_up(config)
    with run_folder(workdir) as folder:
        return _train(setup, folder.absolute())


def _train(setup: Setup, workdir: Path) -> dict[str, float]:
    config = setup.config
    check_nothing_foreign(workdir, setup.task.record())
    weights = _starting_weights(setup, workdir)  # which may be refused: before anything is made
    schedule = make_schedule(config.schedule, setup.resolved)
    rules = setup.task.parameter_rules(config.model.name)
    optimizer = make_optimizer(config.optimizer, schedule, rules)
    init, abstract = make_initialiser(setup, optimizer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    run = _Run(
        setup=setup,
        workdir=workdir,
        schedule=schedule,
        init=lambda: _first_state(setup, init, shardings, weights),
        abstract=abstract,
        update=make_train_step(setup.model, setup.task, optimizer, config, setup.mesh, shardings),
        evaluator=Evaluator(setup.model, setup.task, config, setup.mesh),
    )
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(PreemptionGuard())  # first: it outlasts the last save
        lock = DirectoryLock(workdir)
        in_first_process(lock.acquire)
        stack.callback(lock.release)
        stack.enter_context(log_file(workdir))
        check_same_run(config, workdir)
        checkpointer = stack.enter_context(
            Checkpointer(workdir / CHECKPOINTS, keep=config.checkpoint.keep)
        )
        skipped: list[Skipped] = []
        while True:
            try:
                return _resume(run, checkpointer, guard, skipped)
            except NotFiniteError as error:
                skipped = roll_back(error, config, checkpointer, skipped)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same however often a run resumes.

    Attributes:
        schedule: the learning rate of an update.
        init: makes the first state.
        abstract: the shapes and shardings of a state.
        update: the compiled training step.
    """

    setup: Setup
    workdir: Path
    schedule: Callable[[int], Any]
    init: Callable[[], TrainState]
    abstract: TrainState
    update: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluator: Evaluator

    def evaluate(self, state: TrainState) -> dict[str, float]:
        weights = weights_by_name(state.variables, state.ema)
        return self.evaluator.metrics(weights, self.setup.validation)


def _resume(
    run: _Run, checkpointer: Checkpointer, guard: PreemptionGuard, skipped: list[Skipped]
) -> dict[str, float]:
    """Trains from the newest checkpoint, or the first state, to the end.

    Args:
        skipped: batches left out in this call of `train`; completed by what the checkpoint says.

    Raises:
        NotFiniteError: the loss or its gradient is not finite.
    """
    setup, workdir = run.setup, run.workdir
    config, resolved = setup.config, setup.resolved
    is_main = jax.process_index() == 0
    data = identity(setup.train)  # all names are hashed: once, not at every save
    restored = checkpointer.restore(run.abstract)
    meta = {"interval": {}, "replaced": 0, "skipped": [], "metric_lines": 0}
    if restored is None:
        start, state = 0, run.init()
    else:
        start, state, meta = restored.step, restored.state, restored.meta
        _check_same_data(data, meta["data"], workdir)
    interval = Interval(**meta["interval"])
    skipped[:] = [x for x in skipped or starmap(Skipped, meta["skipped"]) if x.step <= start]
    if is_main:
        record_run(config, workdir, setup.task.record())
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            _metric_writer(config, workdir, start, meta["metric_lines"])
            if is_main
            else NullWriter()
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
        for number, left_out in enumerate(skipped, start=1):
            if left_out.step == start:  # else the line is there
                values = {"rollbacks": number, "skipped_batches": left_out.batches}
                writer.write(start + 1, {f"train/{name}": x for name, x in values.items()})
        first_batch = start + sum(left_out.batches for left_out in skipped)
        reader = stack.enter_context(
            Reader(
                config,
                setup.train,
                setup.task.training_view(),
                first_batch,
                meta["replaced"],
                setup.task.groups(setup.train, train=True),
            )
        )

        metrics: dict[str, float] = {}
        if start >= resolved.total_steps:  # an earlier call has finished this run
            metrics = run.evaluate(state)
        pending: list[tuple[int, dict[str, jax.Array]]] = []
        for step in range(start + 1, resolved.total_steps + 1):
            batch = reader.next()
            progress.data_wait(reader.seconds)
            on_device = put_batch(batch, setup.mesh)
            with jax.transfer_guard("disallow"):
                state, sums = run.update(state, on_device)
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
                interval.add(pending)
                pending = []
                reader.check(step)
            if report:
                averages = interval.averages()
                speed = progress.report(step, {"loss": averages["loss"]})
                values = {
                    **averages,
                    "learning_rate": float(np.asarray(run.schedule(step - 1))),
                    "replaced_examples": reader.replaced,
                    **speed,
                }
                writer.write(step, {f"train/{name}": value for name, value in values.items()})
                interval = Interval()
            unreadable = None
            if evaluate:
                try:
                    with progress.paused():
                        metrics = run.evaluate(state)
                    writer.write(step, metrics)
                    progress.message(
                        f"step {step}/{resolved.total_steps}  {format_metrics(metrics)}"
                    )
                except UnreadableImageError as error:
                    unreadable = error
                    save = jax.process_count() == 1  # others do not know, and would not save
            if save:
                meta = {
                    SETTINGS: config.to_dict(),
                    "data": data,
                    "interval": dataclasses.asdict(interval),
                    "metric_lines": writer.lines,
                    "replaced": reader.replaced,
                    "skipped": skipped,
                }
                with progress.paused():
                    checkpointer.save(step, state, meta)
            if unreadable is not None:
                raise UnreadableImageError(
                    f"{unreadable}; it is an image of the validation set. Repair or replace it, "
                    "and run the same command again, which resumes"
                ) from unreadable
            if stop:
                checkpointer.wait()
                raise Preempted(step, checkpointer.directory / str(step))
    return {"step": max(start, resolved.total_steps), **metrics}


def _starting_weights(setup: Setup, workdir: Path) -> dict[str, Any] | None:
    """Those that the config names, where there is nothing to resume."""
    if not setup.config.model.pretrained or any((workdir / CHECKPOINTS).glob("*")):
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


def _check_same_data(now: dict[str, Any], before: dict[str, Any], workdir: Path) -> None:
    """Update k reads examples by their numbers, which mean others once the set has changed."""
    if difference := changes(before, now):
        raise ValueError(
            f"{workdir} holds a run on other training data: {difference}. Bring the data back to "
            "resume that run, or train into another --workdir, from its weights with "
            "--config.model.pretrained"
        )


def _metric_writer(config: Config, workdir: Path, start: int, lines: int) -> MetricWriter:
    wandb = WandbSettings(config.log.wandb_project, config.to_dict()) if config.log.wandb else None
    tensorboard = config.log.tensorboard
    return MetricWriter(
        workdir, resume_step=start, lines=lines, tensorboard=tensorboard, wandb=wandb
    )
