# SPDX-License-Identifier: Apache-2.0
"""Kernels run where their platform is, and elsewhere say what they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.kernels.dispatch import by_platform, plain_implementations, run_where_lowered
from mambaout_jax.kernels.gelu import gelu

MESSAGE = "lowered for {platforms}, but needs a computer"


def double(x):
    return 2 * x, x.astype(jnp.int32)


def test_run_where_lowered_runs_the_body_of_the_platform():
    x = jnp.array([1.0, 2.5])
    run = functools.partial(run_where_lowered, {"tpu": jnp.sin, "cpu": jnp.negative}, MESSAGE)
    np.testing.assert_array_equal(run(x), [-1.0, -2.5])
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(x), [-1.0, -2.5])
    program = jax.jit(run).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("stablehlo.sine") == 1


def test_run_where_lowered_refuses_other_platforms():
    run = functools.partial(run_where_lowered, {"cuda": double}, MESSAGE)
    for call in (run, jax.jit(run), jax.vmap(run)):
        with pytest.raises(ValueError, match=r"^lowered for cpu, but needs a computer"):
            call(jnp.ones(3))
    traced = jax.jit(run).trace(jnp.ones(3))
    with pytest.raises(ValueError, match=r"^lowered for tpu and rocm, but"):
        traced.lower(lowering_platforms=("tpu", "rocm"))


def test_plain_implementations_reach_functions_that_were_jitted_before():
    program, x = jax.jit(gelu), jnp.ones(3)
    program(x)
    with plain_implementations():
        with plain_implementations():
            pass
        jax.jvp(program, (x,), (x,))  # still plain
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(program, (x,), (x,))


def test_by_platform_runs_the_body_of_the_platform_lowered_for():
    scaled = by_platform(cpu=lambda x, by: x * by, default=lambda x, by: jnp.sin(x) / by)
    assert scaled(jnp.float32(2.0), by=3) == 6
    program = jax.jit(functools.partial(scaled, by=3)).trace(jnp.float32(2.0))
    assert "stablehlo.sine" not in program.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.sine" in program.lower(lowering_platforms=("tpu",)).as_text()
