# SPDX-License-Identifier: Apache-2.0
"""Short products for 3 x 3 convolutions; their gradients are also in `test_strided_conv`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.closeness import assert_close

from mambaout_jax.kernels.winograd import winograd_conv, winograd_gradients


def oracle_gradients(x, kernel, dy, padding):
    """In float64, tap by tap."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    kernel, dy = np.asarray(kernel, np.float64), np.asarray(dy, np.float64)
    (H, W), dx, dkernel = dy.shape[1:3], np.zeros_like(x), np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            at = (slice(None), slice(i, i + H), slice(j, j + W))
            dx[at] += dy @ kernel[i, j].T
            dkernel[i, j] = np.einsum("bhwi,bhwf->if", x[at], dy)
    inside = slice(padding, -padding or None)
    return dx[:, inside, inside], dkernel


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "padding"),
    [((2, 9, 12, 5), 1), ((1, 3, 3, 4), 0), ((3, 2, 5, 3), 2), ((1, 1, 1, 2), 1)],
)
def test_values_and_gradients_are_those_of_the_oracle(rng, shape, padding, dtype):
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, (3, 3, shape[3], 6)))
    expected = oracles.strided_conv(
        np.asarray(x, np.float64), np.asarray(kernel, np.float64), stride=1, padding=padding
    )
    y = jax.jit(winograd_conv, static_argnums=2)(x, kernel, padding)
    rounding = 2.0**-8 if dtype == "bfloat16" else 0.0
    assert y.dtype == x.dtype
    assert_close(y, expected, 2e-6, rounding)
    dy = jnp.asarray(rng.standard_normal(expected.shape), dtype)
    found = jax.jit(winograd_gradients, static_argnums=3)(x, kernel, dy, padding)
    for ours, value in zip(found, oracle_gradients(x, kernel, dy, padding), strict=True):
        assert ours.dtype == x.dtype
        assert_close(ours, value, 2e-6, rounding)


def test_sums_over_many_pixels_of_bfloat16_are_float32():
    x, kernel = jnp.ones((4, 16, 16, 6), jnp.bfloat16), jnp.zeros((3, 3, 6, 5), jnp.bfloat16)
    _, gradient = winograd_gradients(x, kernel, jnp.ones((4, 14, 14, 5), jnp.bfloat16), 0)
    np.testing.assert_array_equal(gradient, 4 * 14 * 14)  # in bfloat16 sums would stop at 256
