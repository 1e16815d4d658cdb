# SPDX-License-Identifier: Apache-2.0
"""Mixers of several paths, and their gates, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit
from support import oracles
from support.variables import randomised

from mambaout_jax.layers.channel_gates import NormGate, SqueezeExcite
from mambaout_jax.mixers.mamba import PathMamba
from mambaout_jax.mixers.routes import directions_of, walk
from mambaout_jax.models.plainmamba import PATHS, PlainMambaMixer, arrivals

# A map of 3 rows and 3 columns with a class token between its patches 3 and 4, as numbers in the
# sequence, where the token is number 4; -1 where a window reaches over the border.
RASTER = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
WINDOWS = [0, 1, 3, 5, 4, 2, -1, 6, -1, 7, 8, -1, -1, 9, -1, -1, -1]
ORDERS = {
    "token stays": ("h_flip w2", False, ([9, 8, 7, 6, 4, 5, 3, 2, 1, 0], WINDOWS)),
    "token turns": ("h h_flip", True, (RASTER, RASTER[::-1])),
}


def in_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def silu(x):
    return x * expit(x)


def causal_conv(x, params):
    kernel, K = params["kernel"][:, 0], len(params["kernel"])
    padded = np.pad(x, ((0, 0), (K - 1, 0), (0, 0)))
    return params["bias"] + sum(kernel[k] * padded[:, k : k + x.shape[1]] for k in range(K))


def norm_gate(x, params):
    """Of sequences."""
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    y = (x - x.mean(-1, keepdims=True)) / deviation * params["norm"]["scale"]
    y = (y + params["norm"]["bias"]).mean(1)
    y = y @ params["reduce"]["kernel"] + params["reduce"]["bias"]
    y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    y = y @ params["expand"]["kernel"] + params["expand"]["bias"]
    return x * expit(y)[:, None]


@pytest.mark.parametrize("case", ORDERS)
@pytest.mark.parametrize("weighed", [False, True])
def test_path_mamba_walks_with_the_class_token_in_the_middle(rng, case, weighed):
    names, turns, orders = ORDERS[case]
    module = PathMamba(
        directions_of(names), (3, 3), state_size=3, token_turns=turns,
        weigh=NormGate(0.5) if weighed else None,
    )  # fmt: skip
    x = rng.standard_normal((2, 10, 8))
    variables = randomised(module, jnp.asarray(x, jnp.float32))
    got = jax.jit(module.apply)(variables, jnp.asarray(x, jnp.float32))

    p = in_float64(variables["params"])
    u, z = np.split(x @ p["in_proj"]["kernel"], 2, axis=-1)
    u = np.concatenate((u, np.zeros_like(u[:, :1])), axis=1)  # what -1 reads
    results = []
    for number, order in enumerate(orders):
        path, y = p[f"path_{number}"], np.zeros_like(u)
        y[:, order] = oracles.ssm(silu(causal_conv(u[:, order], path["conv"])), path["selection"])
        y = y[:, :-1] * silu(z)
        results.append(norm_gate(y, p["weigh"]) if weighed else y / len(orders))
    expected = sum(results) @ p["out_proj"]["kernel"]
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def test_plainmamba_moves_the_inputs_alone_and_adds_the_bias_twice(rng):
    H, W = 2, 3
    x = rng.standard_normal((1, H, W, 8))
    module = PlainMambaMixer(2, "auto", None)
    variables = randomised(module, jnp.asarray(x, jnp.float32))
    got = jax.jit(module.apply)(variables, jnp.asarray(x, jnp.float32))

    p = in_float64(variables["params"])
    u, z = np.split(x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"], 2, axis=-1)
    u = oracles.depthwise_conv(u, p["conv"]["kernel"][:, :, 0]) + p["conv"]["bias"]
    u = silu(u).reshape(1, H * W, -1)
    chosen, selection = u @ p["selection"]["x_proj"]["kernel"], p["selection"]
    delta = chosen[..., :1] @ selection["dt_proj"]["kernel"] + 2 * selection["dt_proj"]["bias"]
    y = np.zeros_like(u)
    steps = {
        (0, 1, 2, 5, 4, 3): (0, 1, 1, 4, 2, 2),
        (3, 4, 5, 2, 1, 0): (0, 1, 1, 3, 2, 2),
        (0, 3, 4, 1, 2, 5): (0, 4, 1, 3, 1, 4),
        (5, 2, 1, 4, 3, 0): (0, 3, 2, 4, 2, 3),
    }
    assert {tuple(walk(path, H, W).tolist()) for path in PATHS} == set(steps)
    for order, direction in steps.items():
        assert tuple(arrivals(np.array(order), (H, W))) == direction
        arrays = {"u": u[:, order], "delta": delta, "A": -np.exp(selection["A_log"]),
                  "B": chosen[..., 1:3] + p["direction_B"][list(direction)],
                  "C": chosen[..., 3:], "D": selection["D"]}  # fmt: skip
        nothing = np.zeros((1, u.shape[-1], 2))
        y[:, order] += oracles.selective_scan(arrays, u, nothing, softplus=True)[0]
    y = (y * silu(z.reshape(y.shape))) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    assert np.abs(got.reshape(y.shape) - y).max() <= 2e-5 * np.abs(y).max()


def test_squeeze_excite_weighs_channels_by_the_mean_of_the_map(rng):
    x = rng.standard_normal((2, 3, 4, 6))
    variables = randomised(SqueezeExcite(3), jnp.asarray(x, jnp.float32))
    p = in_float64(variables["params"])
    y = np.maximum(x.mean((1, 2)) @ p["reduce"]["kernel"] + p["reduce"]["bias"], 0)
    gate = expit(y @ p["expand"]["kernel"] + p["expand"]["bias"])
    got = SqueezeExcite(3).apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, x * gate[:, None, None], atol=1e-5)
