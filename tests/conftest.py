# SPDX-License-Identifier: Apache-2.0
"""What every test runs under: eight fake devices, strict ranks, checked shape annotations."""

import os
import tempfile

# Before any JAX call. Subprocesses that a test starts inherit both.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="mambaout_jax_compilation_cache_")
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
install_import_hook("mambaout_jax", "typechecker.check")


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    import numpy as np

    return np.random.default_rng(0)
