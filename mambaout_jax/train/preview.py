# SPDX-License-Identifier: Apache-2.0
"""What a run would do, before it does it: its recipe as text, its first batch as a picture."""

import contextlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from mambaout_jax.analysis.cost import activation_bytes, count
from mambaout_jax.config import Config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.tasks.setup import check_pretrained, set_up
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.state import make_initialiser
from mambaout_jax.train.step import step_keys


def describe(config: Config) -> str:
    """The resolved recipe as text: what `train` would do, without training.

    Raises:
        ValueError: a setting is wrong.
        FileNotFoundError: `model.pretrained` names no weights.
    """
    setup = set_up(config)
    check_pretrained(config)
    resolved, mesh = setup.resolved, setup.mesh
    schedule = make_schedule(config.schedule, resolved)
    rules = setup.task.parameter_rules(config.model.name)
    optimizer = make_optimizer(config.optimizer, schedule, rules)
    _, abstract = make_initialiser(setup, optimizer)
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
        "model": f"{config.model.name}, {setup.task.describe()}, {config.model.dtype}",
        "parameters": f"{cost.parameters:,}",
        "MACs per image": f"{cost.macs:,} at {'x'.join(map(str, setup.image_shape))}",
        "starts from": _starting_point(config),
        "data": f"{config.data.source}: {len(setup.train):,} training, "
        f"{len(setup.validation):,} validation examples",
        "devices": f"{devices}, mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}",
        "effective batch": f"{config.batch_size} = {mesh.size} devices x {per_device} examples x "
        f"{config.accumulate_steps} micro-batches",
        "updates": f"{resolved.total_steps:,} = {resolved.total_steps / resolved.steps_per_epoch:g}"
        f" epochs x {resolved.steps_per_epoch:,}, warm-up {resolved.warmup_steps:,}",
        "learning rate": f"{resolved.learning_rate:g} peak{scaled}, warm-up from "
        f"{config.schedule.warmup_learning_rate:g}, {_decay(config.schedule)}",
        "weight decay": f"{config.optimizer.weight_decay:g}",
        "every": f"report {resolved.log_every}, evaluate {resolved.evaluate_every}, checkpoint "
        f"{resolved.checkpoint_every} updates",
        "memory per device": f"{_mib(state_bytes + gradient_bytes + kept)} estimated = state "
        f"{_mib(state_bytes)} + gradients {_mib(gradient_bytes)} + activations {_mib(kept)}",
        "for certain": "mambaout compile --target MACHINE asks the compiler of that machine",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def show_batch(config: Config, path: Path) -> None:
    """Draws the first training batch, augmented as one micro-batch of the first update.

    Args:
        path: the PNG file to write.

    Raises:
        ValueError: a setting is wrong.
    """
    setup = set_up(config)
    task, train = setup.task, setup.train
    batches = train_batches(
        config, train, task.training_view(), groups=task.groups(train, train=True)
    )
    with contextlib.closing(batches):
        batch = {name: jnp.asarray(array) for name, array in next(batches).items()}
    batch["position"] = jnp.arange(config.batch_size, dtype=jnp.int32)
    key, _ = step_keys(config.seed, 0)
    task.draw_batch(jax.jit(task.prepare)(batch, key), path)


def _starting_point(config: Config) -> str:
    if not config.model.pretrained:
        return "a fresh initialisation"
    head = "afresh" if config.model.reset_head else "kept"
    return f"{config.model.pretrained}, last layer {head}"


def _decay(schedule: Config) -> str:
    if schedule.decay == "steps":
        epochs = ", ".join(f"{epoch:g}" for epoch in schedule.milestones_epochs)
        return f"times {schedule.decay_factor:g} after epochs {epochs}"
    return f"{schedule.decay} to {schedule.final_learning_rate:g}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
