# SPDX-License-Identifier: Apache-2.0
"""What XLA is told: only on CPUs, and it changes speed but not results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.runtime.compiler_options import to_run_fast, to_start_soon


@pytest.mark.parametrize("options", [to_run_fast, to_start_soon])
def test_only_the_cpu_compiler_is_told_anything(options):
    assert options("cpu")
    for platform in ("gpu", "cuda", "rocm", "tpu"):
        assert options(platform) is None


@pytest.mark.parametrize("options", [to_run_fast, to_start_soon])
def test_options_are_known_to_this_version_of_xla(rng, options):
    x = jnp.asarray(rng.standard_normal((64, 48)), jnp.float32)
    double = np.asarray(x, np.float64)
    y = jax.jit(lambda x: jnp.tanh(x) * x + 1, compiler_options=options("cpu"))(x)
    np.testing.assert_allclose(y, np.tanh(double) * double + 1, rtol=1e-6, atol=1e-6)
