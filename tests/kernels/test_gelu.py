# SPDX-License-Identifier: Apache-2.0
"""The GELU and its gradient against scipy's normal distribution."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.kernels.gelu import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 3e-7)])
def test_gelu_and_its_gradient_match_scipy(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.linspace(-9, 9, 1001, dtype=dtype)
        y, vjp = jax.vjp(gelu, x)
        (dx,) = vjp(2 * jnp.ones_like(x))
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    at = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, at * norm.cdf(at), rtol=tolerance, atol=9 * tolerance)
    slope = norm.cdf(at) + at * norm.pdf(at)
    np.testing.assert_allclose(dx, 2 * slope, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("plain", [False, True])
def test_gelu_of_narrow_numbers_is_rounded_once(dtype, plain):
    x = jnp.linspace(-5, 5, 641).astype(dtype)
    with plain_implementations() if plain else contextlib.nullcontext():
        y, vjp = jax.vjp(gelu, x)
        (dx,) = vjp(jnp.ones_like(x))
    at = np.asarray(x, np.float64)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    # Half a unit in the last place, and what 1 + erf loses in float32.
    half = float(jnp.finfo(dtype).eps) / 2
    for found, wanted in ((y, at * norm.cdf(at)), (dx, norm.cdf(at) + at * norm.pdf(at))):
        np.testing.assert_allclose(
            np.asarray(found, np.float64), wanted, rtol=1.01 * half, atol=1e-6
        )
    assert np.all(np.asarray(y)[(at < -3.1) & (at > -4.5)] < 0)


def test_gelu_keeps_the_input_alone():
    residuals = jax.tree.leaves(jax.vjp(gelu, jnp.ones((5, 7)))[1])
    assert [leaf.shape for leaf in residuals] == [(5, 7)]
