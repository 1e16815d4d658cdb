# SPDX-License-Identifier: Apache-2.0
"""The training run: config → data → model → state → steps → checkpoints and metrics.

Order after every update: report, evaluate, save, stop if asked to. The metrics of an update are
therefore on disk before a checkpoint of it is, and a run that is killed and started again writes
what an uninterrupted one would have written.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from mambaout_jax.analysis.cost import activation_bytes, count
from mambaout_jax.analysis.figures import draw_image_grid
from mambaout_jax.config import Config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets.sources import Source
from mambaout_jax.evaluation.evaluator import make_evaluator
from mambaout_jax.models import parameter_rules
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.runtime.compiler_options import to_start_soon
from mambaout_jax.runtime.mesh import platform_of, put_batch, state_shardings
from mambaout_jax.train.augment import augment_batch
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.preemption import Preempted, PreemptionGuard
from mambaout_jax.train.progress import Progress
from mambaout_jax.train.record import check_same_run, record_run
from mambaout_jax.train.setup import Setup, pretrained_variables, set_up
from mambaout_jax.train.state import TrainState, init_state
from mambaout_jax.train.step import make_train_step, step_keys
from mambaout_jax.train.writer import MetricWriter, NullWriter, WandbSettings

# Fewer unreadable examples than this never stop a run, whatever their share.
_MIN_CORRUPT = 10


def train(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains as the config says, or goes on where an earlier call with this workdir stopped.

    Args:
        config: made from `config.default_config()`.
        workdir: gets `config.json`, `environment.json`, `metrics.jsonl` and `checkpoints/`.

    Returns:
        `step` and the final metrics, such as `eval/top1` in percent.

    Raises:
        ValueError: a setting is wrong, or the workdir holds a run with other settings.
        FileNotFoundError, RuntimeError: the pretrained weights are not there or cannot be read.
        FloatingPointError: the loss or its gradient became NaN or infinite; names the update and
            the last good checkpoint.
        RuntimeError: more training examples are unreadable than the config allows.
        Preempted: SIGTERM or SIGINT came; the state is saved, the same call goes on from it.
    """
    workdir = Path(workdir).absolute()
    setup = set_up(config)
    check_same_run(config, workdir)
    resolved, is_main = setup.resolved, jax.process_index() == 0
    schedule = make_schedule(config.schedule, resolved)
    optimizer = make_optimizer(config.optimizer, schedule, parameter_rules(config.model.name))
    init, abstract = _initialiser(setup, optimizer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = make_train_step(
        setup.model, setup.task, optimizer, config, setup.num_classes, setup.mesh, shardings
    )
    evaluator = make_evaluator(setup)

    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(PreemptionGuard())  # first: it outlasts the last save
        checkpointer = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep)
        )
        restored = checkpointer.restore(abstract)
        if restored is None:
            start, interval, replaced = 0, _Interval(), 0
            state = _first_state(setup, init, shardings)
        else:
            start, interval = restored.step, _Interval(**restored.meta["interval"])
            state, replaced = restored.state, restored.meta["replaced"]
            _check_same_data(_identity(setup.train), restored.meta["data"], workdir)
        if is_main:
            record_run(config, workdir, setup.train.class_names)
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
            progress.message(f"going on from {checkpointer.directory / str(start)}")
        reader = stack.enter_context(_Reader(setup, start, replaced))

        metrics: dict[str, float] = {}
        if start >= resolved.total_steps:  # an earlier call has finished this run
            metrics = evaluator(state.variables, state.ema)
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
                interval = _Interval()
            if evaluate:
                with progress.paused():
                    metrics = evaluator(state.variables, state.ema)
                writer.write(step, metrics)
                progress.message(f"step {step}/{resolved.total_steps}  {format_metrics(metrics)}")
            if save:
                meta = {
                    "interval": dataclasses.asdict(interval),
                    "replaced": reader.replaced,
                    "data": _identity(setup.train),
                }
                with progress.paused():
                    checkpointer.save(step, state, meta)
            if stop:
                checkpointer.wait()
                raise Preempted(step, checkpointer.directory / str(step))
    return {"step": max(start, resolved.total_steps), **metrics}


def format_metrics(metrics: dict[str, float]) -> str:
    """One line, such as "eval/loss 0.53  eval/top1 98.89"."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def describe(config: Config) -> str:
    """The resolved recipe as text: what `train` would do, without training.

    Raises:
        ValueError: a setting is wrong.
    """
    setup = set_up(config)
    resolved, mesh = setup.resolved, setup.mesh
    schedule = make_schedule(config.schedule, resolved)
    optimizer = make_optimizer(config.optimizer, schedule, parameter_rules(config.model.name))
    _, abstract = _initialiser(setup, optimizer)
    cost = count(setup.model, setup.image_shape)
    per_device = resolved.micro_batch_size // mesh.size
    state_bytes = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
    gradient_bytes = 4 * cost.parameters
    kept = activation_bytes(setup.model, setup.image_shape, per_device)
    reference = config.optimizer.learning_rate_batch_size
    scaled = f" ({config.optimizer.learning_rate:g} at batch {reference})" if reference else ""
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}"
    rows = {
        "model": f"{config.model.name}, {setup.num_classes} classes, {config.model.dtype}",
        "parameters": f"{cost.parameters:,}",
        "MACs per image": f"{cost.macs:,} at {'x'.join(map(str, setup.image_shape))}",
        "starts from": _start(config),
        "data": f"{config.data.source}: {len(setup.train):,} training, "
        f"{len(setup.validation):,} validation examples",
        "devices": f"{devices}, mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}",
        "effective batch": f"{config.batch_size} = {mesh.size} devices x {per_device} examples x "
        f"{config.accumulate_steps} micro-batches",
        "updates": f"{resolved.total_steps:,} = {resolved.total_steps / resolved.steps_per_epoch:g}"
        f" epochs x {resolved.steps_per_epoch:,}, warm-up {resolved.warmup_steps:,}",
        "learning rate": f"{resolved.learning_rate:g} peak{scaled}, warm-up from "
        f"{config.schedule.warmup_learning_rate:g}, cosine to "
        f"{config.schedule.final_learning_rate:g}",
        "weight decay": f"{config.optimizer.weight_decay:g}",
        "every": f"report {resolved.log_every}, evaluate {resolved.evaluate_every}, checkpoint "
        f"{resolved.checkpoint_every} updates",
        "memory per device": f"{_mib(state_bytes + gradient_bytes + kept)} estimated = state "
        f"{_mib(state_bytes)} + gradients {_mib(gradient_bytes)} + activations {_mib(kept)}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def show_batch(config: Config, path: Path) -> None:
    """Draws the first training batch, augmented as one micro-batch of the first update.

    Args:
        path: of the PNG.

    Raises:
        ValueError: a setting is wrong.
    """
    setup = set_up(config)
    with contextlib.closing(train_batches(config, setup.train)) as batches:
        batch = next(batches)
    key, _ = step_keys(config.seed, 0)
    micro_batch = {name: jnp.asarray(batch[name]) for name in ("image", "label")}
    micro_batch["place"] = jnp.arange(config.batch_size, dtype=jnp.int32)
    made = augment_batch(key, micro_batch, config, setup.num_classes)
    mean, std = (np.asarray(v, np.float32) for v in (config.data.mean, config.data.std))
    pixels = np.clip((np.asarray(made["image"]) * std + mean) * 255, 0, 255).round()
    titles = []
    for target in np.asarray(made["target"]):
        likely = np.argsort(-target, kind="stable")[:2]
        names = [f"{setup.train.class_names[i]} {target[i]:.2f}" for i in likely]
        mixed = target[likely[1]] > config.loss.label_smoothing / setup.num_classes + 1e-3
        titles.append("\n".join(names if mixed else names[:1]))
    draw_image_grid(pixels.astype(np.uint8), titles, path)


@dataclasses.dataclass
class _Interval:
    """Sums since the last report; goes into checkpoints, so that a resumed report is complete."""

    steps: int = 0
    loss: float = 0.0
    count: float = 0.0
    gradient_norm: float = 0.0

    def add(
        self, pending: list[tuple[int, dict[str, jax.Array]]], checkpointer: Checkpointer
    ) -> None:
        """Fetches the sums of updates from the device and checks that they are finite."""
        for step, sums in jax.device_get(pending):
            # The loss is of the parameters before the update; only the gradient tells of those
            # after it, which a checkpoint would hold.
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(sums[name]):
                    checkpointer.wait()  # a save may be under way, of a good state
                    raise FloatingPointError(
                        f"the {name.replace('_', ' ')} is {sums[name]} at step {step}; the last "
                        f"good checkpoint is {checkpointer.latest_path or 'not there yet'}. Try a "
                        "lower optimizer.learning_rate, optimizer.clip_norm=1.0 or "
                        "model.dtype=float32"
                    )
            self.steps += 1
            self.loss += float(sums["loss"])
            self.count += float(sums["count"])
            self.gradient_norm += float(sums["gradient_norm"])

    def averages(self) -> dict[str, float]:
        return {
            "loss": self.loss / self.count,
            "gradient_norm": self.gradient_norm / self.steps,
        }


class _Reader:
    """Training batches, how long the last one took, and how many examples had to be replaced.

    Args:
        start: updates made so far.
        replaced: examples replaced in them, over all processes.
    """

    def __init__(self, setup: Setup, start: int, replaced: int):
        self._config = setup.config
        self._batches = train_batches(
            setup.config,
            setup.train,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._replaced_here = 0
        self.replaced, self.seconds = replaced, 0.0

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

    def next(self) -> dict[str, np.ndarray]:
        """The next batch."""
        began = time.perf_counter()
        batch = dict(next(self._batches))
        self.seconds = time.perf_counter() - began
        self._replaced_here += int(batch.pop("replaced").sum())
        return batch

    def check(self, step: int) -> None:
        """Adds up what all processes have replaced up to `step`; every process must call it.

        Raises:
            RuntimeError: too many examples could not be read.
        """
        here = np.array(self._replaced_here, np.int32)
        self.replaced += int(multihost_utils.process_allgather(here).sum())
        self._replaced_here = 0
        read, limit = step * self._config.batch_size, self._config.data.max_corrupt_fraction
        if self.replaced > max(_MIN_CORRUPT, limit * read):
            raise RuntimeError(
                f"{self.replaced} of {read} training examples could not be read and were "
                f"replaced, more than data.max_corrupt_fraction={limit}; the log names the "
                "files: repair or remove them, or raise the limit"
            )


def _initialiser(
    setup: Setup, optimizer: optax.GradientTransformation
) -> tuple[Callable[[jax.Array], TrainState], TrainState]:
    """The jitted function that makes the first state, and the state's shapes with shardings."""
    init = partial(
        init_state,
        model=setup.model,
        optimizer=optimizer,
        image_shape=setup.image_shape,
        with_ema=setup.config.ema.decay > 0,
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(shapes, setup.mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    options = to_start_soon(platform_of(setup.mesh))
    return jax.jit(init, out_shardings=shardings, compiler_options=options), abstract


def _first_state(
    setup: Setup, init: Callable[[jax.Array], TrainState], shardings: TrainState
) -> TrainState:
    """Freshly initialised, or with the pretrained weights that the config names."""
    config = setup.config
    state = init(jax.random.key(config.seed))
    if not config.model.pretrained:
        return state
    variables = pretrained_variables(config, setup.num_classes)
    # A jitted identity is the one way to place host arrays that is right with several processes.
    return jax.jit(lambda x: x, out_shardings=shardings)(state.started_from(variables))


def _identity(source: Source) -> str:
    """How many examples of what kind: each kind of source has an order of its own."""
    return f"{len(source)} training examples ({type(source).__name__})"


def _check_same_data(now: str, before: str, workdir: Path) -> None:
    """Update k reads examples by their numbers, which mean others once the set has changed."""
    if now != before:
        raise ValueError(
            f"{workdir} holds a run on {before}, and there are {now} now; bring the data back to "
            "go on with that run, or train into another --workdir, from its weights with "
            "--config.model.pretrained"
        )


def _metric_writer(config: Config, workdir: Path, start: int) -> MetricWriter:
    wandb = WandbSettings(config.log.wandb_project, config.to_dict()) if config.log.wandb else None
    return MetricWriter(workdir, resume_step=start, tensorboard=config.log.tensorboard, wandb=wandb)


def _start(config: Config) -> str:
    if not config.model.pretrained:
        return "a fresh initialisation"
    head = "afresh" if config.model.reset_head else "kept"
    return f"{config.model.pretrained}, last layer {head}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
