# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation and its gradients against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from mambaout_jax.kernels.layer_norm import layer_norm


def slopes(arrays, dy, step=1e-6):
    """Central differences of Σ dy · layer_norm in random directions, one per argument."""
    rng = np.random.default_rng(1)
    for i, array in enumerate(arrays):
        direction = rng.standard_normal(array.shape)
        moved = [
            [a + sign * step * direction if i == j else a for j, a in enumerate(arrays)]
            for sign in (1, -1)
        ]
        up, down = ((oracles.layer_norm(*at) * dy).sum() for at in moved)
        yield direction, (up - down) / (2 * step)


def draw(rng, shape, dtype):
    arrays = (
        2 + 3 * rng.standard_normal(shape),
        1 + 0.3 * rng.standard_normal(shape[-1]),
        rng.standard_normal(shape[-1]),
        rng.standard_normal(shape),
    )
    return [jnp.asarray(array, dtype) for array in arrays]


@pytest.mark.parametrize("shape", [(2, 3, 4, 10), (7, 24), (1, 2)])
def test_layer_norm_and_its_gradients_match_numpy(rng, shape):
    with jax.enable_x64(True):
        *arrays, dy = draw(rng, shape, jnp.float64)
        y, vjp = jax.vjp(jax.jit(layer_norm), *arrays)
        gradients = vjp(dy)
    np.testing.assert_allclose(y, oracles.layer_norm(*arrays), rtol=1e-12, atol=1e-13)
    arrays, dy = [np.asarray(a) for a in arrays], np.asarray(dy)
    for gradient, (direction, slope) in zip(gradients, slopes(arrays, dy), strict=True):
        assert (np.asarray(gradient) * direction).sum() == pytest.approx(slope, rel=1e-7, abs=1e-7)


def test_layer_norm_is_accurate_far_from_zero(rng):
    # The mean of squares less the square of the mean would lose all digits here.
    x = jnp.asarray(1000 + 0.01 * rng.standard_normal((5, 64)), jnp.float32)
    ones = jnp.ones(64)
    y = layer_norm(x, ones, 0 * ones)
    assert np.abs(y - oracles.layer_norm(x, ones, 0 * ones)).max() < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_computes_in_at_least_float32(rng, dtype):
    x, _, _, dy = draw(rng, (4, 6, 96), dtype)
    scale, bias = jnp.full(96, 1.5), jnp.full(96, 0.25)
    y, vjp = jax.vjp(layer_norm, x, scale, bias)
    dx, dscale, dbias = vjp(dy)
    assert (y.dtype, dx.dtype, dscale.dtype, dbias.dtype) == (dtype, dtype, "float32", "float32")
    expected = oracles.layer_norm(x, scale, bias)
    rounding = 2**-8 if dtype == "bfloat16" else 0
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert np.all(error <= 1e-5 + rounding * np.abs(expected))
    truth = np.asarray(dy, np.float64).sum(axis=(0, 1))
    np.testing.assert_allclose(dbias, truth, rtol=1e-5, atol=1e-5)


def test_layer_norm_keeps_the_input_and_two_numbers_per_token():
    x, channels = jnp.ones((5, 7, 32)), jnp.ones(32)
    residuals = jax.tree.leaves(jax.vjp(layer_norm, x, channels, channels)[1])
    sizes = sorted(leaf.size for leaf in residuals)
    assert sizes == [32, 32, 35, 35, 5 * 7 * 32]
