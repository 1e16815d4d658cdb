# SPDX-License-Identifier: Apache-2.0
"""The GELU and its gradient against scipy's normal distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

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


def test_gelu_keeps_bfloat16():
    x = jnp.linspace(-3, 3, 64, dtype=jnp.bfloat16)
    y, vjp = jax.vjp(gelu, x)
    at = np.asarray(x, np.float64)
    assert (y.dtype, vjp(y)[0].dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(y, np.float64), at * norm.cdf(at), atol=0.03)


def test_gelu_keeps_the_input_alone():
    residuals = jax.tree.leaves(jax.vjp(gelu, jnp.ones((5, 7)))[1])
    assert [leaf.shape for leaf in residuals] == [(5, 7)]
