# SPDX-License-Identifier: Apache-2.0
"""Kernels run where their platform is, and elsewhere say what they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.kernels.dispatch import (
    by_platform,
    deferred,
    plain_implementations,
    run_where_lowered,
)
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


def test_deferred_is_traced_for_its_platform_alone():
    traced = []

    def slow(x, pair, *, by):
        traced.append(by)
        return {"sum": jnp.sin(x + pair[0]) * by, "first": pair[1]}

    def quick(x, pair, *, by):
        return {"sum": (x + pair[0]) * by, "first": pair[1]}

    run = by_platform(tpu=deferred(slow, like=quick), default=quick)
    x, pair = jnp.ones(3), (jnp.arange(3.0), jnp.int32(7))
    found = run(x, pair, by=2)
    np.testing.assert_array_equal(found["sum"], [2, 4, 6])
    assert found["first"] == 7
    many = jax.vmap(functools.partial(run, by=2), in_axes=(None, (0, None)), out_axes=0)
    rows = jnp.stack([pair[0], 2 * pair[0]])
    np.testing.assert_array_equal(many(x, (rows, pair[1]))["sum"], [[2, 4, 6], [2, 6, 10]])
    assert not traced
    for function, arguments in ((functools.partial(run, by=2), (x, pair)), (many, (x, (rows, 7)))):
        program = jax.jit(function).trace(*arguments)
        assert "stablehlo.sine" in program.lower(lowering_platforms=("tpu",)).as_text()
        assert traced.pop() == 2
        assert not traced
        several = program.lower(lowering_platforms=("cpu", "tpu")).as_text()
        assert "stablehlo.sine" not in several
        assert not traced


def test_deferred_runs_its_body_eagerly_where_it_is_alone():
    run = deferred(lambda x: (x + 1, 2 * x), like=lambda x: (x, x))
    np.testing.assert_array_equal(run(jnp.ones(2)), [[2, 2], [2, 2]])
