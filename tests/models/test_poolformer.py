# SPDX-License-Identifier: Apache-2.0
"""Norms of whole maps, and pooling that knows where a map ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.layers.norms import MapNorm
from mambaout_jax.models import create_backbone


def test_map_norm_takes_the_moments_of_pixels_and_channels_together(rng):
    x = 300 + rng.standard_normal((2, 3, 4, 5))
    variables = {"params": {"scale": np.arange(5.0), "bias": np.ones(5)}}
    mean, variance = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * np.arange(5.0) + 1
    found = MapNorm().apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    half = MapNorm(dtype=jnp.bfloat16).apply(variables, jnp.ones((1, 2, 2, 5), jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_even_pooling_windows_are_refused():
    backbone = create_backbone("poolformer_s24", pool_size=4)
    with pytest.raises(ValueError, match="pool_size=4 must be odd"):
        jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
