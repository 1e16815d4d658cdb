# SPDX-License-Identifier: Apache-2.0
"""VMamba's mixer against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from support import oracles
from support.variables import randomised

from mambaout_jax.mixers.routes import paths_of, walk
from mambaout_jax.mixers.ss2d import SS2D


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("routes", ["cross", "phases"])
def test_ss2d_equals_its_equation_in_float64(rng, routes, gated):
    x = rng.standard_normal((2, 3, 5, 6))
    module = SS2D(paths_of(routes), 2, 3, "auto", gated, None)
    variables = randomised(module, jnp.asarray(x, jnp.float32))
    got = jax.jit(module.apply)(variables, jnp.asarray(x, jnp.float32))

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    y = x @ p["in_proj"]["kernel"]
    y, z = np.split(y, 2, axis=-1) if gated else (y, None)
    y = oracles.depthwise_conv(y, p["conv"]["kernel"][:, :, 0]) + p["conv"].get("bias", 0)
    walks = [(walk(path, 3, 5), False) for path in paths_of(routes)]
    y = oracles.map_ssm(y * expit(y), p["ssm"], walks)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * p["norm"]["scale"] + p["norm"]["bias"]
    y = y if z is None else y * z * expit(z)
    expected = y @ p["out_proj"]["kernel"]
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
