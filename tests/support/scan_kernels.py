# SPDX-License-Identifier: Apache-2.0
"""What the tests of the scan's kernels share: cases, a comparison with the oracle, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.closeness import assert_close

from mambaout_jax.kernels.selective_scan_pallas import How, _scan, scan_pallas

# (B, L, D, N, G), dtype of u, B and C, reverse, softplus (delta and y have that dtype then). With
# chunks of 4 tokens and tiles of 128 channels, neither L nor D / G is a whole number of them.
CASES = {
    "chunks": ((1, 11, 5, 4, 1), "float32", False, False),
    "groups-one-state-reverse": ((2, 6, 6, 1, 2), "float32", True, True),
    "odd-states-bfloat16": ((1, 5, 3, 3, 1), "bfloat16", False, True),
    "tiles-reverse": ((1, 6, 130, 2, 1), "bfloat16", True, False),
}
NAMES = ("u", "delta", "A", "B", "C", "D", "initial_state")


def draw(rng, shape, dtype, softplus=False):
    """Arguments by position, and cotangents of y and the last state."""
    batch, L, D, N, G = shape
    u, delta, dy = rng.standard_normal((3, batch, L, D))
    if not softplus:
        delta = np.log1p(np.exp(delta))
    A, skip = -np.exp(rng.standard_normal((D, N))), rng.standard_normal(D)
    B, C = rng.standard_normal((2, batch, L, G, N))
    state, dstate = rng.standard_normal((2, batch, D, N))
    narrow = dtype if softplus else "float32"
    dtypes = (dtype, narrow, "float32", dtype, dtype, "float32", "float32")
    arrays = (u, delta, A, B, C, skip, state)
    arrays = tuple(jnp.asarray(x, dtype) for x, dtype in zip(arrays, dtypes, strict=True))
    return arrays, (jnp.asarray(dy, narrow), jnp.asarray(dstate, "float32"))


def interpreted(*arrays, chunk=4, dtype="float32", **options):
    """`scan_pallas` with the kernels of a `platform`, for the caller's interpret mode."""
    return _scan(*arrays, How(dtype=jnp.dtype(dtype), chunk=chunk, **options))


def check(rng, case, platform, chunk):
    """Compares outputs and gradients of a platform's kernels, in the caller's interpret mode."""
    shape, dtype, reverse, softplus = case
    arrays, cotangents = draw(rng, shape, dtype, softplus)
    options = {"reverse": reverse, "softplus": softplus, "dtype": cotangents[0].dtype}

    @jax.jit
    def run(arrays, cotangents):
        scan = functools.partial(interpreted, platform=platform, chunk=chunk, **options)
        outputs, vjp = jax.vjp(scan, *arrays)
        return outputs, vjp(cotangents)

    (y, state), gradients = run(arrays, cotangents)
    named = dict(zip(NAMES, arrays, strict=True))
    expected_y, expected_state, expected = oracles.selective_scan(
        named, *cotangents, softplus=softplus, reverse=reverse
    )
    _check_one(y, cotangents[0], expected_y)
    _check_one(state, cotangents[1], expected_state)
    for ours, given, value in zip(gradients, arrays, expected.values(), strict=True):
        _check_one(ours, given, value)


def _check_one(ours, like, value):
    assert ours.dtype == like.dtype
    assert_close(ours, value, 3e-6, 2.0**-8 if like.dtype == jnp.bfloat16 else 0.0)


def lower(platform, shape, dtype, reverse):
    """Programs for a platform that need not be here: of the outputs, and of all the gradients."""
    arrays, cotangents = draw(np.random.default_rng(0), shape, dtype, softplus=True)
    scan = functools.partial(scan_pallas, reverse=reverse, softplus=True, dtype=dtype)

    def gradients(*arrays):
        return jax.vjp(scan, *arrays)[1](cotangents)

    return [
        jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        for f in (scan, gradients)
    ]


LOWERED = {  # at the sizes of models
    "vim": ((2, 196, 384, 16, 1), "bfloat16", False),
    "vmamba-one-state-groups": ((1, 49, 768, 1, 4), "bfloat16", True),
    "most-states": ((1, 40, 192, 32, 1), "float32", False),
    "float16": ((1, 7, 96, 5, 1), "float16", True),
}


def by_default(name, cases=CASES):
    """The cases as parameters of a test: `name` runs by default, the others with the slow tests."""
    return [case if case == name else pytest.param(case, marks=pytest.mark.slow) for case in cases]
