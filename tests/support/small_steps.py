# SPDX-License-Identifier: Apache-2.0
"""Small models, batches and meshes that tests of single steps share."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.config import default_config
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.models import create_model, parameter_rules
from mambaout_jax.runtime.mesh import make_mesh as mesh_over
from mambaout_jax.runtime.mesh import put_batch, state_shardings
from mambaout_jax.tasks.classification import Classification
from mambaout_jax.tasks.task import Objective
from mambaout_jax.train.optimizer import make_optimizer
from mambaout_jax.train.state import init_state
from mambaout_jax.train.step import make_train_step

QUICK = {"xla_backend_optimization_level": 0}
SHAPE = (16, 16, 1)
CLASSES = 10
RATES = (1e-2, 5e-3, 2e-2)


class Linear(nn.Module):
    """Logits straight from pixels."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(CLASSES, name="dense")(images.reshape(images.shape[0], -1))


class Normed(nn.Module):
    """A linear layer, batch normalisation and a linear layer."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(6, name="dense")(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        return nn.Dense(CLASSES, name="classifier")(x)


class Dropped(nn.Module):
    """Twos for kept examples, zeros for dropped ones."""

    @nn.compact
    def __call__(self, images, train=False):
        kernel = self.param("kernel", nn.initializers.ones, (1, 1))
        return DropPath(0.5, name="drop_path")(jnp.ones((images.shape[0], 1)) @ kernel, train)


class Recorded(Objective):
    """A task without a gradient, whose sums are what `record(logits, batch)` finds."""

    def __init__(self, record, config, num_classes=CLASSES):
        self.record, self.traces = record, 0
        self.prepare = task_of(config, num_classes).prepare

    def loss(self, model, params, collections, batch, key):
        self.traces += 1
        logits = model.apply({"params": params}, batch["image"], True, rngs={"dropout": key})
        return 0 * logits.sum(), (dict(collections), {"record": self.record(logits, batch)})


def make_config(batch_size=64, **values):
    config = default_config()
    config.batch_size = batch_size
    config.data.update(image_size=16, channels=1, mean=(0.4,), std=(0.3,))
    config.optimizer.epsilon = 1e-2  # less, and Adam blows rounding up where gradients are nothing
    config.update_from_flattened_dict(values)
    return config


def make_batches(count, batch_size=64):
    rng = np.random.default_rng(1)
    return [
        {
            "image": rng.integers(0, 256, (batch_size, *SHAPE), dtype=np.uint8),
            "label": rng.integers(0, CLASSES, batch_size).astype(np.int32),
        }
        for _ in range(count)
    ]


def make_mesh(data, fsdp):
    return mesh_over(fsdp, jax.devices()[: data * fsdp])


def task_of(config, num_classes=CLASSES):
    return Classification(config, tuple(map(str, range(num_classes))))


def shardings_of(tree, mesh):
    return state_shardings(jax.eval_shape(lambda: tree), mesh)


def optimizer_of(config):
    rules = parameter_rules("mambaout_micro")
    return make_optimizer(
        config.optimizer, lambda step: jnp.asarray(RATES)[step % len(RATES)], rules
    )


def micro(dtype=jnp.float32):
    """A small MambaOut, with the depthwise convolution that accelerators run."""
    return create_model("mambaout_micro", CLASSES, in_chans=1, dtype=dtype, drop_path=0.0,
                        depths=(1, 1), dims=(8, 16), conv_implementation="lax")  # fmt: skip


def init(model, config, mesh):
    """The initial state on the mesh, and its shardings."""
    make = functools.partial(init_state, model=model, optimizer=optimizer_of(config),
                             image_shape=SHAPE, with_ema=config.ema.decay > 0)  # fmt: skip
    shardings = state_shardings(jax.eval_shape(make, jax.random.key(0)), mesh)
    make = jax.jit(make, out_shardings=shardings, compiler_options=QUICK)
    return make(jax.random.key(0)), shardings


def make_step(model, config, mesh, shardings, task=None):
    task = task or task_of(config)
    return make_train_step(model, task, optimizer_of(config), config, mesh, shardings)


def compile_step(step, state, config):
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *SHAPE), np.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    return step.lower(state, batch).compile(compiler_options=QUICK)


def follow(step, state, batches, mesh):
    """All states and sums of some updates, fetched; the last state, where it is."""
    states, found = [], []
    for batch in batches:
        state, sums = step(state, put_batch(batch, mesh))
        states.append(jax.device_get(state))
        found.append(jax.device_get(sums))
    return states, found, state


def run(model, config, mesh, batches, task=None):
    state, shardings = init(model, config, mesh)
    step = make_step(model, config, mesh, shardings, task)
    return follow(compile_step(step, state, config), state, batches, mesh)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def assert_close(got, want, **tolerances):
    got, want = flat(got), flat(want)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **tolerances)
