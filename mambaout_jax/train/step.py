# SPDX-License-Identifier: Apache-2.0
"""The training step, a pure function jitted onto a mesh."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mambaout_jax.config import Config
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.runtime.mesh import batch_sharding, platform_of, replicated
from mambaout_jax.tasks.task import Objective
from mambaout_jax.train.optimizer import frozen_mask
from mambaout_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


def step_keys(seed: int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The random keys of one update: of its augmentation, and of dropout and drop path."""
    augment, dropout = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment, dropout


def make_train_step(
    model: nn.Module,
    task: Objective,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    shardings: TrainState,
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Jits `(state, batch) -> (state, sums)`; the state that goes in is donated.

    A batch, as the task's training view makes it, is split into `config.accumulate_steps`
    micro-batches, whose gradients are averaged before the one update. The sums are the task's, and
    `gradient_norm` of the averaged gradient.

    Args:
        shardings: the state's.
    """
    steps = config.accumulate_steps

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        augment, dropout = step_keys(config.seed, state.step)
        frozen = frozen_mask(state.params, config.optimizer.freeze)

        def micro_step(carry: tuple[Any, Any], micro: tuple[jax.Array, Batch]) -> Any:
            gradients, collections = carry
            number, micro_batch = micro

            def loss(params):
                # Gathered whole, so that a split parameter never leads XLA to split activations.
                params = jax.lax.with_sharding_constraint(params, replicated(mesh))
                # No backward pass for what is not trained.
                params = _stop_gradients(params, frozen)
                inputs = task.prepare(micro_batch, augment)
                key = jax.random.fold_in(dropout, number)
                return task.loss(model, params, collections, inputs, key)

            new, (collections, sums) = jax.grad(loss, has_aux=True)(state.params)
            return (jax.tree.map(lambda g, n: g + n / steps, gradients, new), collections), sums

        batch = {**batch, "position": jnp.arange(config.batch_size, dtype=jnp.int32)}
        carry = (jax.tree.map(jnp.zeros_like, state.params), state.collections)
        if steps == 1:  # even an unrolled loop of one step runs three times slower on CPU
            carry, sums = micro_step(carry, (jnp.zeros((), jnp.int32), batch))
        else:
            micro_batches = (jnp.arange(steps), _split(batch, steps, mesh))
            carry, sums = jax.lax.scan(micro_step, carry, micro_batches)
            sums = jax.tree.map(lambda s: s.sum(0), sums)
        gradients, collections = carry
        sums["gradient_norm"] = optax.tree.norm(gradients)
        return state.updated(gradients, collections, optimizer, config.ema.decay), sums

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=to_run_fast(platform_of(mesh)),
    )


def _stop_gradients(params: Any, frozen: Any) -> Any:
    return jax.tree.map(
        lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf, params, frozen
    )


def _split(batch: Batch, steps: int, mesh: Mesh) -> Batch:
    """(B, ...) to (steps, B / steps, ...), each device keeping the examples it has.

    A device's examples stand together in the batch; each micro-batch takes a share of every
    device's, so that nothing moves between devices.
    """
    devices = mesh.size

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(devices, steps, x.shape[0] // (devices * steps), *x.shape[1:])
        x = x.swapaxes(0, 1)  # (steps, devices, B / (devices * steps), ...)
        return x.reshape(steps, -1, *x.shape[3:])

    return jax.tree.map(split, batch)
