# SPDX-License-Identifier: Apache-2.0
"""What the strided convolution refuses, and how it counts. Its numbers are in `test_contracts`."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

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
