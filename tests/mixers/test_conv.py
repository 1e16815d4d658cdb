# SPDX-License-Identifier: Apache-2.0
"""The causal convolution against numpy's own, channel by channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.mixers.conv import CausalConv


@pytest.mark.parametrize(("length", "kernel_size"), [(9, 4), (2, 4), (5, 1), (1, 3)])
def test_causal_conv_matches_numpy(rng, length, kernel_size):
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, length, 3)))
        params = {
            "kernel": jnp.asarray(rng.standard_normal((kernel_size, 1, 3))),
            "bias": jnp.asarray(rng.standard_normal(3)),
        }
        y = CausalConv(kernel_size).apply({"params": params}, x)
    assert y.dtype == np.float64
    for b in range(2):
        for d in range(3):
            kernel = np.asarray(params["kernel"])[::-1, 0, d]  # numpy flips, networks do not
            expected = np.convolve(np.asarray(x)[b, :, d], kernel)[:length]
            expected += np.asarray(params["bias"])[d]
            np.testing.assert_allclose(y[b, :, d], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation", [2, 5])
def test_dilated_causal_conv_takes_every_so_manyth_token(rng, dilation):
    x = rng.standard_normal((1, 11, 2)).astype(np.float32)
    kernel = rng.standard_normal((3, 1, 2)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.array([0.5, -0.5], np.float32)}
    y = CausalConv(3, dilation=dilation).apply({"params": params}, jnp.asarray(x))
    expected = np.zeros((11, 2)) + params["bias"]
    for t in range(11):
        for k in range(3):
            if (source := t - (2 - k) * dilation) >= 0:
                expected[t] += kernel[k, 0] * x[0, source]
    np.testing.assert_allclose(y[0], expected, rtol=1e-5, atol=1e-5)


def test_causal_conv_starts_uniform_in_the_fan_in():
    x = jnp.zeros((1, 3, 4096))
    params = CausalConv(4).init(jax.random.key(0), x)["params"]
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() == pytest.approx(0.5, rel=1e-2)  # 4 ** -0.5
        assert leaf.std() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def test_causal_conv_computes_in_its_dtype(rng):
    x = jnp.asarray(rng.standard_normal((1, 3, 2)), jnp.float32)
    module = CausalConv(2, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    assert module.apply(variables, x).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
