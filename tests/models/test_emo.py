# SPDX-License-Identifier: Apache-2.0
"""Attention in windows whose pixels lie far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from mambaout_jax.models.emo import StridedWindowAttention


def test_windows_take_every_so_manyth_pixel_and_see_the_padding(rng):
    H, W, C, side = 3, 5, 4, 2  # padded to 4 x 6: windows of pixels 2 and 3 apart
    x = rng.standard_normal((1, H, W, C))
    module = StridedWindowAttention(heads=2, window=side, dtype=None)
    variables = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    qk = variables["params"]["qk"]
    padded = np.pad(x[0], ((0, 1), (0, 1), (0, 0)))
    expected = np.zeros(padded.shape)
    for row, column in np.ndindex(2, 3):
        pixels = padded[row::2, column::3].reshape(4, C)
        query, key = np.split(pixels @ np.asarray(qk["kernel"]) + np.asarray(qk["bias"]), 2, axis=1)
        heads = [part.reshape(4, 2, 2).swapaxes(0, 1) for part in (query, key, pixels)]
        seen = oracles.attention(*heads, np.ones((4, 4), bool))
        expected[row::2, column::3] = seen.swapaxes(0, 1).reshape(2, 2, C)
    got = module.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got[0], expected[:H, :W], atol=1e-5)


def test_heads_divide_the_channels():
    module = StridedWindowAttention(heads=3, window=7, dtype=None)
    with pytest.raises(ValueError, match="heads=3 does not divide the 4 channels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 7, 7, 4)))
