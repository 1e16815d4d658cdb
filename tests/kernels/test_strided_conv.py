# SPDX-License-Identifier: Apache-2.0
"""What the strided convolution refuses, and how it counts. Its numbers are in `test_contracts`."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from support import oracles

from mambaout_jax.kernels import strided_conv as module
from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.kernels.strided_conv import strided_conv


@pytest.mark.parametrize(
    ("size", "side", "stride", "padding", "expected"),
    [(7, 3, 2, 1, 4), (8, 3, 2, 1, 4), (11, 4, 4, 0, 2), (9, 7, 4, 3, 3), (7, 7, 2, 0, 1)],
)
def test_strided_conv_counts_windows_as_torch_does(size, side, stride, padding, expected):
    x = jax.ShapeDtypeStruct((1, size, size, 2), jnp.float32)
    kernel = jax.ShapeDtypeStruct((side, side, 2, 3), jnp.float32)
    y = jax.eval_shape(lambda x, k: strided_conv(x, k, stride=stride, padding=padding), x, kernel)
    assert y.shape == (1, expected, expected, 3)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "dtype", "options", "message"),
    [
        ((4, 4, 2), (2, 2, 2, 3), "float32", {"stride": 2}, r"\(4, 4, 2\).*x must be \(B, H"),
        ((1, 4, 4, 2), (2, 2, 1, 3), "float32", {"stride": 2}, "third of kernel must be equal"),
        ((1, 4, 4, 2), (2, 2, 2, 3), "int32", {"stride": 2}, "same floating dtype"),
        ((1, 4, 4, 2), (2, 2, 2, 3), "float32", {"stride": 0}, "stride=0 .* at least 1"),
        ((1, 4, 4, 2), (7, 7, 2, 3), "float32", {"stride": 2, "padding": 1}, "smaller than the"),
    ],
)
def test_strided_conv_rejects(monkeypatch, x_shape, kernel_shape, dtype, options, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        strided_conv(jnp.ones(x_shape, dtype), jnp.ones(kernel_shape, dtype), **options)


def shorten(monkeypatch):
    """Takes short products for every map that they are made for."""
    monkeypatch.setattr(module, "_MANY_PIXELS", 1)
    monkeypatch.setattr(module, "_MANY_CHANNELS", 1)


def programs(shape, sides, padding, stride=1):
    """How many matrix products and convolutions the program for a CPU has."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((*sides, shape[3], 5), jnp.float32)
    conv = functools.partial(strided_conv, stride=stride, padding=padding)
    text = jax.jit(conv).lower(x, kernel).as_text()
    return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")


@pytest.mark.parametrize(
    ("sides", "padding", "stride", "expected"),
    [
        ((3, 3), 1, 1, (16, 0)),
        ((3, 3), 0, 1, (16, 0)),
        ((3, 3), 3, 1, (0, 1)),
        ((3, 3), 1, 2, (0, 1)),
        ((3, 5), 1, 1, (0, 1)),
    ],
)
def test_short_products_stand_for_three_by_three_windows(
    monkeypatch, sides, padding, stride, expected
):
    shorten(monkeypatch)
    assert programs((2, 7, 6, 6), sides, padding, stride) == expected


def test_few_pixels_or_channels_are_left_to_the_compiler(monkeypatch):
    monkeypatch.setattr(module, "_MANY_CHANNELS", 5)
    assert programs((1, 31, 31, 6), (3, 3), 1) == (0, 1)
    assert programs((1, 32, 32, 6), (3, 3), 1) == (16, 0)
    monkeypatch.setattr(module, "_MANY_CHANNELS", 6)
    assert programs((1, 32, 32, 6), (3, 3), 1) == (0, 1)


@pytest.mark.parametrize(
    ("shape", "padding"), [((2, 7, 5, 6), 1), ((3, 3, 4, 6), 2), ((1, 6, 4, 6), 0)]
)
def test_short_products_and_their_gradients_are_those_of_the_oracle(
    rng, monkeypatch, shape, padding
):
    shorten(monkeypatch)
    kernel = rng.standard_normal((3, 3, shape[3], 5))
    x, dx, dk = (rng.standard_normal(s) for s in (shape, shape, kernel.shape))
    dy = rng.standard_normal(oracles.strided_conv(x, kernel, stride=1, padding=padding).shape)

    @jax.jit
    def gradients(x, kernel, dy):
        y, vjp = jax.vjp(lambda x, k: strided_conv(x, k, stride=1, padding=padding), x, kernel)
        return y, *vjp(dy)

    with jax.enable_x64(True):
        y, for_x, for_kernel = map(np.asarray, gradients(*map(jnp.asarray, (x, kernel, dy))))
    conv = functools.partial(oracles.strided_conv, stride=1, padding=padding)
    np.testing.assert_allclose(y, conv(x, kernel), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.vdot(for_x, dx), np.vdot(conv(dx, kernel), dy), rtol=1e-11)
    np.testing.assert_allclose(np.vdot(for_kernel, dk), np.vdot(conv(x, dk), dy), rtol=1e-11)


def test_short_products_are_differentiated_forwards_in_their_plain_form(monkeypatch):
    shorten(monkeypatch)
    x, kernel = jnp.ones((1, 5, 5, 6)), jnp.ones((3, 3, 6, 5))
    run = functools.partial(strided_conv, kernel=kernel, stride=1, padding=1)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(run, (x,), (x,))
    with plain_implementations():
        y, tangent = jax.jvp(run, (x,), (x,))
    np.testing.assert_allclose(tangent, y, rtol=1e-6)
