# SPDX-License-Identifier: Apache-2.0
"""States of many dtypes, containers and shardings, to be saved and compared."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@struct.dataclass
class State:
    step: jax.Array
    variables: Any
    opt_state: Any


OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(
        optax.add_decayed_weights(0.1), lambda params: jax.tree.map(lambda x: x.ndim == 2, params)
    ),
    optax.adamw(optax.linear_schedule(0.0, 1.0, 10)),
)


def make_mesh(data, fsdp):
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def make_shardings(state, mesh):
    """Splits the leading axis of kernels over "fsdp"; everything else is whole on every device."""

    def sharding(x):
        spec = PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, state)


def make_state(seed, mesh=None, width=16):
    """A state of many dtypes whose optimizer has made one update from random gradients."""
    return _maker(mesh or make_mesh(8, 1), width)(seed)


@functools.cache
def _maker(mesh, width):
    make = functools.partial(_make_state, width=width)
    shardings = make_shardings(jax.eval_shape(make, 0), mesh)
    return jax.jit(make, out_shardings=shardings)


def _make_state(seed, width):
    def normal(key, shape, dtype=jnp.float32):
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), key), shape, dtype)

    params = {
        "backbone": {"stem": {"kernel": normal(0, (64, width)), "bias": normal(1, (width,))}},
        "head": {"kernel": normal(2, (width, 5), jnp.bfloat16)},
    }
    gradients = jax.tree.map(lambda x: x * 2 + 1, params)
    _, opt_state = OPTIMIZER.update(gradients, OPTIMIZER.init(params), params)
    # Orbax splits a whole array over the devices: 8 chunks, each too large to be stored inline.
    noise = jax.random.bits(jax.random.key(seed), (16384,), jnp.uint8)
    counts = {"seen": jnp.array([True, False]), "bytes": noise}
    step = jnp.asarray(seed, jnp.int32)
    return State(step, {"params": params, "counts": counts}, opt_state)


def make_abstract(state, mesh=None):
    shardings = make_shardings(state, mesh) if mesh else jax.tree.map(lambda x: x.sharding, state)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def flatten(tree):
    """Path -> (dtype, shape, bytes), by an own walk over the containers."""
    if isinstance(tree, dict):
        items = tree.items()
    elif hasattr(tree, "_asdict"):
        items = tree._asdict().items()
    elif hasattr(tree, "__dataclass_fields__"):
        items = [(name, getattr(tree, name)) for name in tree.__dataclass_fields__]
    elif isinstance(tree, tuple):
        items = enumerate(tree)
    else:
        x = np.asarray(tree)
        return {"": (str(x.dtype), x.shape, x.tobytes())}
    return {
        f"/{name}{path}": leaf for name, child in items for path, leaf in flatten(child).items()
    }
