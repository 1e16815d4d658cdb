# SPDX-License-Identifier: Apache-2.0
"""What the tests promise each other: see conftest.py."""

import os

import jax
import pytest


def test_programs_are_compiled_quickly():
    assert jax.config.values["jax_disable_most_optimizations"]
    assert os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "True"


@pytest.mark.optimised
def test_programs_are_optimised_where_that_is_asked_for():
    assert not jax.config.values["jax_disable_most_optimizations"]
    assert os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "False"


def test_one_folder_keeps_the_compiled_programs():
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
