# SPDX-License-Identifier: Apache-2.0
"""The transposed convolution against its definition, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.variables import randomised

from mambaout_jax.layers.transposed_conv import TransposedConv


@pytest.mark.parametrize("side", [2, 3])
def test_each_pixel_becomes_a_square(rng, side):
    x = rng.standard_normal((2, 2, 3, 4, 5), np.float32)  # two leading axes, as regions have
    layer = TransposedConv(6, side)
    variables = randomised(layer, x)
    kernel, bias = (np.asarray(variables["params"][n], np.float64) for n in ("kernel", "bias"))
    expected = np.zeros((2, 2, 3 * side, 4 * side, 6))
    for i, j, a, b in np.ndindex(3, 4, side, side):
        expected[:, :, side * i + a, side * j + b] = x[:, :, i, j] @ kernel[a, b] + bias
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, atol=1e-5)


def test_macs_and_dtype():
    x = jnp.ones((1, 3, 4, 5))
    layer = TransposedConv(6, 2, use_bias=False, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert set(variables["params"]) == {"kernel"}
    assert layer.macs((x,), y) == 3 * 4 * (5 * 6 * 2 * 2)
