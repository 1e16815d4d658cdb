# SPDX-License-Identifier: Apache-2.0
"""The first state and what one update makes of a state, by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mambaout_jax.runtime.mesh import make_mesh, state_shardings
from mambaout_jax.train.state import TrainState, init_state

SHAPE = (4, 4, 3)
MOMENTUM = optax.sgd(0.5, momentum=0.9)


class Normed(nn.Module):
    """A linear layer wide enough to be split, and batch normalisation."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(512, name="dense")(images.reshape(images.shape[0], -1))
        return nn.BatchNorm(not train, name="norm")(x)


def initialise(with_ema=True, fsdp=8, seed=3):
    make = functools.partial(
        init_state, model=Normed(), optimizer=MOMENTUM, image_shape=SHAPE, with_ema=with_ema
    )
    shapes = jax.eval_shape(make, jax.random.key(seed))
    shardings = state_shardings(shapes, make_mesh(fsdp))
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


@pytest.fixture(scope="module")
def state():
    return initialise()


def test_init_state_holds_what_the_model_makes(state):
    variables = Normed().init(jax.random.key(3), jnp.zeros((1, *SHAPE)))
    assert_equal(state.params, variables["params"])
    assert_equal(state.collections, {"batch_stats": variables["batch_stats"]})
    assert_equal(state.variables, variables)
    assert_equal(state.ema, variables)
    assert_equal(state.opt_state[0].trace, jax.tree.map(jnp.zeros_like, variables["params"]))
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    assert float(jnp.std(state.params["dense"]["kernel"])) > 0.1


def test_init_state_keeps_an_average_only_where_asked(state):
    without = initialise(with_ema=False)
    assert without.ema is None
    assert_equal(without, state.replace(ema=None))


def test_init_state_is_the_same_split_and_whole(state):
    kernel = state.params["dense"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(48, 64)}
    assert_equal(initialise(fsdp=1), state)


def test_init_state_shares_no_memory_between_its_leaves(state):
    """Sharing leaves could not both be donated."""
    leaves = jax.tree.leaves(state)
    places = {leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in leaves}
    assert len(places) == len(leaves)


def test_a_tree_of_shardings_is_a_state_too():
    shapes = jax.eval_shape(
        lambda key: init_state(key, Normed(), MOMENTUM, SHAPE, with_ema=False), jax.random.key(0)
    )
    assert isinstance(shapes, TrainState)
    specs = state_shardings(shapes, make_mesh(8))
    assert specs.params["dense"]["kernel"].shard_shape((48, 512)) == (48, 64)
    assert specs.ema is None


def test_updated_moves_parameters_and_average(rng):
    def draw():
        return {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}

    def cast(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    params, statistics = draw(), {"mean": rng.standard_normal(2)}
    average = {"params": dict(params), "batch_stats": dict(statistics)}
    variables = cast({"params": params, "batch_stats": statistics})
    state = TrainState(
        jnp.zeros((), jnp.int32),
        variables["params"],
        {"batch_stats": variables["batch_stats"]},
        MOMENTUM.init(variables["params"]),
        variables,
    )
    trace = {name: np.zeros_like(p) for name, p in params.items()}
    for number in range(1, 4):
        gradients, statistics = draw(), {"mean": rng.standard_normal(2)}
        state = state.updated(cast(gradients), {"batch_stats": cast(statistics)}, MOMENTUM, 0.8)
        for name, g in gradients.items():
            trace[name] = 0.9 * trace[name] + g
            params[name] = params[name] - 0.5 * trace[name]
            average["params"][name] = 0.8 * average["params"][name] + 0.2 * params[name]
        average["batch_stats"]["mean"] = (
            0.8 * average["batch_stats"]["mean"] + 0.2 * statistics["mean"]
        )
        assert int(state.step) == number
        expected = {"params": params, "batch_stats": statistics}
        for got, want in ((state.variables, expected), (state.ema, average)):
            jax.tree.map(
                lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want
            )
    without = state.replace(ema=None).updated(
        cast(gradients), state.collections, MOMENTUM, ema_decay=0.8
    )
    assert without.ema is None
