# SPDX-License-Identifier: Apache-2.0
"""Everything that training changes, as one pytree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from mambaout_jax.runtime.compiler_options import to_start_soon
from mambaout_jax.runtime.mesh import platform_of, state_shardings
from mambaout_jax.tasks.setup import Setup


class TrainState(flax.struct.PyTreeNode):
    """The state after `step` updates, or a tree like it of shapes or of shardings.

    Attributes:
        step: updates done, int32.
        params: what the optimiser changes.
        collections: the model's other variables, such as batch statistics; often empty.
        opt_state: state of the optimiser.
        ema: moving average of all variables, None where none is kept.
    """

    step: Any
    params: Any
    collections: dict[str, Any]
    opt_state: optax.OptState
    ema: Any

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, **self.collections}

    def updated(
        self,
        gradients: Any,
        collections: dict[str, Any],
        optimizer: optax.GradientTransformation,
        ema_decay: float,
    ) -> "TrainState":
        """The state after one more update; the average moves by `1 - ema_decay`."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = self.ema
        if ema is not None:
            new = {"params": params, **collections}
            # In this form the average of what stays the same stays the same to the bit.
            ema = jax.tree.map(lambda old, now: old + (1 - ema_decay) * (now - old), ema, new)
        return TrainState(self.step + 1, params, collections, opt_state, ema)

    def started_from(self, variables: dict[str, Any]) -> "TrainState":
        """The state before the first update of `variables`, as a new optimiser sees them."""
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        return self.replace(
            params=variables["params"],
            collections=collections,
            ema=None if self.ema is None else variables,
        )


def init_state(
    key: jax.Array,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    with_ema: bool,
) -> TrainState:
    """The state before the first update; to be jitted into its shardings.

    Args:
        key: random key of the initialisation.
        image_shape: (H, W, C).
        with_ema: keep a moving average, which starts at the initial variables.
    """
    variables = dict(model.init(key, jnp.zeros((1, *image_shape))))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=variables,
        opt_state=optimizer.init(params),
        ema={"params": params, **variables} if with_ema else None,
    )


def make_initialiser(
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
