# SPDX-License-Identifier: Apache-2.0
"""What the tests of the scan's kernels share: cases, a comparison with the oracle, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.closeness import assert_close

from mambaout_jax.kernels.selective_scan_pallas import _scan, scan_pallas

# (B, L, D, N, G), dtype of u, B and C, reverse. With chunks of 4 tokens and tiles of 128 channels,
# neither L nor D / G is a whole number of them.
CASES = {
    "chunks": ((1, 11, 5, 4, 1), "float32", False),
    "groups-one-state-reverse": ((2, 6, 6, 1, 2), "float32", True),
    "odd-states-bfloat16": ((1, 5, 3, 3, 1), "bfloat16", False),
    "tiles-reverse": ((1, 6, 130, 2, 1), "float32", True),
}
NAMES = ("u", "delta", "A", "B", "C", "initial_state")


def draw(rng, shape, dtype):
    batch, L, D, N, G = shape
    u, dy = rng.standard_normal((2, batch, L, D))
    delta = np.log1p(np.exp(rng.standard_normal((batch, L, D))))
    A = -np.exp(rng.standard_normal((D, N)))
    B, C = rng.standard_normal((2, batch, L, G, N))
    state, dstate = rng.standard_normal((2, batch, D, N))
    dtypes = (dtype, "float32", "float32", dtype, dtype, "float32")
    arrays = (u, delta, A, B, C, state)
    arrays = tuple(jnp.asarray(x, dtype) for x, dtype in zip(arrays, dtypes, strict=True))
    return arrays, (jnp.asarray(dy, "float32"), jnp.asarray(dstate, "float32"))


def check(rng, case, platform, chunk):
    """Compares outputs and gradients of a platform's kernels, in the caller's interpret mode."""
    shape, dtype, reverse = case
    arrays, cotangents = draw(rng, shape, dtype)

    @jax.jit
    def run(arrays, cotangents):
        scan = functools.partial(_scan, reverse=reverse, chunk=chunk, platform=platform)
        outputs, vjp = jax.vjp(scan, *arrays)
        return outputs, vjp(cotangents)

    (y, state), gradients = run(arrays, cotangents)
    named = dict(zip(NAMES, arrays, strict=True))
    *expected, expected_gradients = oracles.selective_scan(named, *cotangents, reverse=reverse)
    for ours, value in zip((y, state), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, value, 3e-6)
    for ours, given, value in zip(gradients, arrays, expected_gradients.values(), strict=True):
        assert ours.dtype == given.dtype
        assert_close(ours, value, 3e-6, 2.0**-8 if given.dtype == jnp.bfloat16 else 0.0)


def lower(platform, shape, dtype, reverse):
    """Programs for a platform that need not be here: of the outputs, and of all the gradients."""
    arrays, cotangents = draw(np.random.default_rng(0), shape, dtype)

    def gradients(*arrays):
        return jax.vjp(functools.partial(scan_pallas, reverse=reverse), *arrays)[1](cotangents)

    forward = functools.partial(scan_pallas, reverse=reverse)
    return [
        jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        for f in (forward, gradients)
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
