# SPDX-License-Identifier: Apache-2.0
"""The SSM mixers: the reference's Mamba mixer, paths by hand, and how the parameters start."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of, value_of
from support import oracles
from support.places import GOLDENS

from mambaout_jax.mixers.mamba import MambaMixer
from mambaout_jax.mixers.routes import ROUTES, paths_of, token_order
from mambaout_jax.mixers.ssm import SSM, MapSSM, Selection, dt_rank_of

GOLDEN = GOLDENS / "mamba" / "mamba_block_d48_n16.npz"


def reference_variables(meta):
    """Parameters of `MambaMixer` from the reference's, by its rule."""
    state = {name: value_of(name, tuple(shape), meta["seed"]) for name, shape in meta["params"]}
    return {
        "in_proj": {"kernel": state["in_proj.weight"].T},
        "conv": {
            "kernel": state["conv1d.weight"].transpose(2, 1, 0),
            "bias": state["conv1d.bias"],
        },
        "ssm": {
            "selection": {
                "x_proj": {"kernel": state["x_proj.weight"].T},
                "dt_proj": {"kernel": state["dt_proj.weight"].T, "bias": state["dt_proj.bias"]},
                "A_log": state["A_log"],
                "D": state["D"],
            }
        },
        "out_proj": {"kernel": state["out_proj.weight"].T},
    }


@pytest.mark.parametrize("implementation", ["sequential", "associative", "chunked"])
def test_mamba_mixer_equals_the_reference(implementation):
    with np.load(GOLDEN) as file:
        meta, output = json.loads(str(file["meta"])), file["output"]
    x = input_of(tuple(meta["input_shape"]), meta["seed"])
    module = MambaMixer(implementation=implementation)
    params = reference_variables(meta)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == meta["n_params"]
    y = jax.jit(module.apply)({"params": params}, x)
    assert np.abs(y - output).max() / output.std() <= 5e-5


def draw(rng, shapes):
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape)), shapes)


@pytest.mark.parametrize("routes", ROUTES)
def test_map_ssm_is_the_sum_of_its_paths(rng, routes):
    H, W, D, N, R = 3, 5, 4, 2, 3
    module = MapSSM(paths_of(routes), state_size=N, dt_rank=R)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, H, W, D)))
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        params = draw(rng, shapes)
        y = jax.jit(module.apply)({"params": params}, x)
    walks = [(token_order(path.order, H, W), path.reverse) for path in paths_of(routes)]
    expected = oracles.map_ssm(x, params, walks)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)


def test_ssm_sees_only_what_lies_before(rng):
    x = jnp.asarray(rng.standard_normal((1, 8, 4)), jnp.float32)
    for reverse, unchanged in ((False, slice(0, 5)), (True, slice(6, 8))):
        module = SSM(state_size=3, dt_rank=2, reverse=reverse)
        variables, apply = jax.jit(module.init)(jax.random.key(0), x), jax.jit(module.apply)
        changed = apply(variables, x.at[0, 5].add(1.0)) - apply(variables, x)
        moved = np.abs(changed).max(axis=(0, 2)) > 0
        assert not moved[unchanged].any()
        assert moved[5]
        assert moved[6 if not reverse else 4]


def test_selection_starts_as_mamba_does():
    D, N, R = 512, 16, 12
    params = jax.jit(Selection(N, R).init)(jax.random.key(0), jnp.zeros((1, 2, D)))["params"]
    np.testing.assert_allclose(np.exp(params["A_log"]), np.tile(np.arange(1, N + 1), (D, 1)), 1e-6)
    np.testing.assert_array_equal(params["D"], np.ones(D))
    step = np.logaddexp(np.asarray(params["dt_proj"]["bias"], np.float64), 0)
    assert 1e-3 <= step.min() < 1.1e-3
    assert 0.09 < step.max() <= 0.1 * (1 + 1e-5)
    assert np.log(step).mean() == pytest.approx(np.log(1e-2), abs=0.15)
    for name, fan_in in (("x_proj", D), ("dt_proj", R)):
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert "bias" not in params["x_proj"]


def test_dt_rank_is_a_sixteenth_rounded_up():
    assert [dt_rank_of(width) for width in (1, 16, 48, 96, 100)] == [1, 1, 3, 6, 7]


def test_ssm_in_bfloat16_stays_near_float32(rng):
    x = jnp.asarray(rng.standard_normal((2, 40, 8)), jnp.float32)
    exact, variables = jax.jit(SSM(4, 2).init_with_output)(jax.random.key(0), x)
    half = jax.jit(SSM(4, 2, dtype=jnp.bfloat16).apply)(variables, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.asarray(half, np.float32) - exact).max() / np.abs(exact).max()
    assert error < 0.02


def test_gradients_keep_no_states_of_single_tokens():
    B, H, W, D, N = 2, 28, 28, 32, 64
    x = jax.ShapeDtypeStruct((B, H, W, D), jnp.float32)
    module = MapSSM(paths_of("cross"), N, 3)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    gradient = jax.grad(lambda variables, x: module.apply(variables, x).sum(), argnums=(0, 1))
    program = jax.jit(gradient).lower(variables, x).compile()
    every_state = 4 * B * H * W * D * N * 4  # bytes, on the four paths
    assert program.memory_analysis().temp_size_in_bytes < every_state / 2


def test_all_paths_are_one_scan():
    x = jax.ShapeDtypeStruct((1, 4, 6, 8), jnp.float32)
    module = MapSSM(paths_of("cross"), 2, 3, implementation="sequential")
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    program = str(jax.make_jaxpr(module.apply)(variables, x))
    assert program.count(" scan[") == 1


@pytest.mark.parametrize("implementation", ["chunked", "pallas"])
def test_gradient_of_a_map_needs_the_map_and_the_states_of_chunks_alone(implementation):
    paths = paths_of("cross")
    mixer = MapSSM(paths, state_size=16, dt_rank=2, implementation=implementation)
    x = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.bfloat16)
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
    _, gradient = jax.eval_shape(lambda *inputs: jax.vjp(mixer.apply, *inputs), variables, x)
    kept = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(gradient)]
    for leaf in jax.tree.leaves(variables):
        kept.remove((leaf.shape, "float32"))
    # Chunks of 16 of the 256 tokens. The kernel's channels fill tiles of 128 a group.
    states = {"chunked": (16, 2, 4, 16, 64), "pallas": (2, 16, 16, 4 * 128)}[implementation]
    assert sorted(kept) == sorted([((2, 16, 16, 64), "bfloat16"), (states, "float32")])
