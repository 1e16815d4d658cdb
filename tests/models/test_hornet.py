# SPDX-License-Identifier: Apache-2.0
"""Filters of a map's spectrum, on maps of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.models import create_backbone
from mambaout_jax.models.hornet import (
    SpectralFilter,
    _filtered,
    _filtered_by_sums,
    _linear_weights,
)


def test_a_filter_is_a_convolution_that_wraps_around(rng):
    x = rng.standard_normal((1, 4, 6, 2))
    taps = rng.standard_normal((4, 6, 2))
    spectrum = np.fft.rfft2(taps, axes=(0, 1))
    kernel = np.stack((spectrum.real, spectrum.imag), axis=2)  # (H, W // 2 + 1, 2, C)
    expected = np.zeros(x.shape)
    for i, j in np.ndindex(4, 6):
        expected += taps[i, j] * np.roll(x, (i, j), axis=(1, 2))
    y = SpectralFilter((4, 6)).apply(
        {"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    half = SpectralFilter((4, 6)).apply(
        {"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, jnp.asarray(x, jnp.bfloat16)
    )
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_sums_over_waves_are_the_fourier_transform(rng, size):
    x = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32)
    shape = (1, size[0], size[1] // 2 + 1, 3)
    factors = jnp.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    factors = factors.astype(jnp.complex64)
    np.testing.assert_allclose(_filtered_by_sums(x, factors), _filtered(x, factors), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "new_size", "expected"),
    [
        (3, 5, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]),
        (4, 2, [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (3, 1, [[1, 0, 0]]),
        (1, 2, [[1], [1]]),
    ],
)
def test_filters_are_interpolated_with_corners_upon_corners(size, new_size, expected):
    np.testing.assert_allclose(_linear_weights(size, new_size), expected)


def test_filters_are_made_for_the_size_asked_for_whatever_the_images():
    options = {"depths": (1, 1), "dims": (8, 16), "token_mixers": ("conv", "filter")}
    backbone = create_backbone("hornet_base_gf", **options, filter_image_size=384)
    image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    block = variables["params"]["stage_1_block_00"]
    assert block["gnconv"]["mixer"]["filter"]["kernel"].shape == (48, 25, 2, 14)
    assert maps[1].shape == (1, 8, 4, 16)
    wrong = create_backbone("hornet_base_gf", **{**options, "token_mixers": ("conv", "fft")})
    message = r"token_mixers=\('conv', 'fft'\) is not allowed; it must have one of 'conv', 'filter'"
    with pytest.raises(ValueError, match=rf"{message} for each of the 2 stages"):
        jax.eval_shape(wrong.init, jax.random.key(0), image)
