# SPDX-License-Identifier: Apache-2.0
"""Blocks that loop: the values of blocks that do not, compiled once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.layers.block_loop import run_blocks
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.models import create_model
from mambaout_jax.models.mambaout import BlockOptions, GatedCNNBlock


class AddOne(nn.Module):
    """x + DropPath(weight), the weight being 1."""

    drop_path: float | jax.Array = 0.0

    @nn.compact
    def __call__(self, x, train):
        weight = self.param("weight", nn.initializers.ones, ())
        return x + DropPath(self.drop_path, name="drop_path")(jnp.full_like(x, weight), train)


class Normalised(nn.Module):
    drop_path: float | jax.Array = 0.0

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train)(x)


class Stage(nn.Module):
    blocks: tuple[type[nn.Module], ...]
    rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x, train=False):
        pairs = zip(self.blocks, self.rates, strict=True)
        blocks = [block(rate, name=f"block_{i}") for i, (block, rate) in enumerate(pairs)]
        return run_blocks(blocks, x, train, loop=True)


class Gated(nn.Module):
    """Blocks of MambaOut."""

    depth: int
    loop: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x, train=False):
        block = nn.remat(GatedCNNBlock, static_argnums=(2,))
        blocks = [block(self.options, name=f"block_{i}") for i in range(self.depth)]
        return run_blocks(blocks, x, train, loop=self.loop)


def test_a_loop_changes_neither_names_nor_values_nor_gradients(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 8)), jnp.float32)
    stages = [Gated(3, loop, BlockOptions(layer_scale=0.5)) for loop in (False, True)]
    variables, looped = (stage.init(jax.random.key(0), x) for stage in stages)
    jax.tree.map(np.testing.assert_array_equal, variables, looped)

    def run(stage):
        def loss(variables):
            return (stage.apply(variables, x) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss))(variables)

    (value, gradient), (value_looped, gradient_looped) = map(run, stages)
    np.testing.assert_allclose(value_looped, value, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_looped), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6 * np.abs(one).max() + 1e-12)


def test_a_stage_is_one_program_however_long_it_is():
    def products(depth, **model):
        sizes = {"depths": (1, 1, depth, 1), "dims": (8, 12, 16, 20), "num_classes": 5}
        model = create_model("mambaout_tiny", **sizes, **model)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        return str(jax.make_jaxpr(model.apply)(variables, image)).count("dot_general")

    assert products(3) < products(8)
    assert products(3, loop_blocks=True) == products(8, loop_blocks=True) > 0


def test_each_turn_drops_at_the_rate_of_its_block():
    rates = (0.0, 0.5, 0.75)
    stage = Stage((AddOne,) * 3, rates)
    x = jnp.zeros((20_000, 1))
    variables = stage.init(jax.random.key(0), x)
    assert float(stage.apply(variables, x).max()) == float(stage.apply(variables, x).min()) == 3
    y = stage.apply(variables, x.astype(jnp.bfloat16), True, rngs={"dropout": jax.random.key(1)})
    assert y.dtype == jnp.bfloat16
    values, counts = np.unique(np.asarray(y, np.float32), return_counts=True)
    np.testing.assert_array_equal(values, [1, 3, 5, 7])  # 1 + 2 [kept] + 4 [kept]
    np.testing.assert_allclose(counts / y.size, [0.375, 0.375, 0.125, 0.125], atol=0.015)


def test_blocks_that_drop_nothing_need_no_random_stream():
    stage = Stage((AddOne,) * 3, (0.0, 0.0, 0.0))
    variables = stage.init(jax.random.key(0), jnp.zeros((2, 1)))
    np.testing.assert_array_equal(stage.apply(variables, jnp.zeros((2, 1)), True), [[3], [3]])


def test_blocks_that_differ_cannot_loop():
    class Other(AddOne):
        pass

    stage = Stage((AddOne, Other), (0.0, 0.0))
    variables = stage.init(jax.random.key(0), jnp.zeros((1, 1)))
    with pytest.raises(ValueError, match="block_1, a Other with params, cannot run in a loop"):
        stage.apply(variables, jnp.zeros((1, 1)))
    stage = Stage((Normalised,) * 2, (0.0, 0.0))
    variables = stage.init(jax.random.key(0), jnp.zeros((1, 1)))
    with pytest.raises(ValueError, match="block_0, a Normalised with batch_stats, params, cannot"):
        stage.apply(variables, jnp.zeros((1, 1)))
