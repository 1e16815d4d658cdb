# SPDX-License-Identifier: Apache-2.0
"""The kernels on a real NVIDIA GPU, at the sizes of models: JAX_PLATFORMS=cuda pytest -m gpu -n 0.

Without one these tests fail: to ask for them is to expect a GPU.
"""

import jax
import jax.numpy as jnp
import pytest
from support import oracles, scan_kernels
from support.closeness import assert_close

from mambaout_jax.benchmarks.timing import find_device
from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.selective_scan import selective_scan

pytestmark = pytest.mark.gpu

STAGES = ((56, 96), (28, 192), (14, 384), (7, 576))  # of MambaOut-Tiny: map side, channels
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8}  # of a result, relative


@pytest.mark.parametrize("implementation", ["pallas", "chunked", "associative"])
@pytest.mark.parametrize("case", scan_kernels.LOWERED)
def test_scan_on_a_gpu_matches_oracle(rng, case, implementation):
    shape, dtype, reverse = scan_kernels.LOWERED[case]
    arrays, cotangents = scan_kernels.draw(rng, shape, dtype)
    named = dict(zip(scan_kernels.NAMES, arrays, strict=True))

    def scan(named):
        return selective_scan(
            **named, reverse=reverse, return_state=True, implementation=implementation
        )

    @jax.jit
    def run(named, dy, dstate):
        (y, state), vjp = jax.vjp(scan, named)
        return y, state, *vjp((dy.astype(y.dtype), dstate))

    with jax.default_device(find_device("gpu")):
        y, state, gradients = run(named, *cotangents)
    expected = oracles.selective_scan(named, *cotangents, reverse=reverse)
    half = {"float16": 2.0**-11} | ROUNDING
    assert_close(y, expected[0], 1e-5, half[dtype])
    assert_close(state, expected[1], 1e-5, 0.0)
    for name, gradient in gradients.items():
        # dy is rounded to the dtype of y before it comes in.
        assert_close(gradient, expected[2][name], 1e-5 + half[dtype], half[gradient.dtype.name])


@pytest.mark.parametrize("implementation", ["pallas", "shift", "lax"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("stage", STAGES)
def test_depthwise_conv_on_a_gpu_matches_oracle(rng, stage, dtype, implementation):
    side, channels = stage
    x, dy = (jnp.asarray(rng.standard_normal((2, side, side, channels)), dtype) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((7, 7, channels)), dtype)

    @jax.jit
    def run(x, kernel, dy):
        y, vjp = jax.vjp(
            lambda x, kernel: depthwise_conv(x, kernel, implementation=implementation), x, kernel
        )
        return y, *vjp(dy)

    with jax.default_device(find_device("gpu")), jax.default_matmul_precision("highest"):
        results = run(x, kernel, dy)
    expected = (
        oracles.depthwise_conv(x, kernel),
        *oracles.depthwise_conv_gradients(x, kernel, dy),
    )
    for actual, value in zip(results, expected, strict=True):
        assert_close(actual, value, 1e-5, ROUNDING[dtype])
