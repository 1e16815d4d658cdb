# SPDX-License-Identifier: Apache-2.0
"""The Mamba mixer against transformers: names, what is compared, and a peer that is missing."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.benchmarks import scan_block_peer
from mambaout_jax.benchmarks.scan_block_peer import block_peer
from mambaout_jax.mixers.mamba import MambaMixer


def test_parameters_have_the_names_and_shapes_of_transformers():
    shapes = jax.eval_shape(MambaMixer().init, jax.random.key(0), jnp.zeros((1, 3, 16)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = scan_block_peer._state_dict(variables)
    assert {name: value.shape for name, value in state.items()} == {
        "in_proj.weight": (64, 16),
        "conv1d.weight": (32, 1, 4),
        "conv1d.bias": (32,),
        "x_proj.weight": (1 + 2 * 16, 32),
        "dt_proj.weight": (32, 1),
        "dt_proj.bias": (32,),
        "A_log": (32, 16),
        "D": (32,),
        "out_proj.weight": (16, 32),
    }
    kernel = variables["params"]["conv"]["kernel"]
    np.testing.assert_array_equal(state["conv1d.weight"][5, 0], kernel[:, 0, 5])


def test_backward_pass_has_the_gradients_of_tokens_and_parameters():
    mixer = types.SimpleNamespace(apply=lambda variables, x: variables["scale"] * x)
    scale, x, dy = (jnp.array([value]) for value in (2.0, 3.0, 5.0))
    calls = scan_block_peer._our_calls(mixer, {"scale": scale}, x, dy)
    assert [float(y[0]) for y in calls["forward"]()] == [6.0]
    y, dx, gradients = calls["forward+backward"]()
    assert (float(y[0]), float(dx[0]), float(gradients["scale"][0])) == (6.0, 10.0, 15.0)


def test_difference_is_that_of_output_or_gradient():
    theirs = ([4.0, -8.0], [1.0, 2.0], "more")
    near = ([4.0, -8.0002], [1.0, 2.0001], "more")
    assert scan_block_peer._difference(near, theirs) == pytest.approx(5e-5)
    assert scan_block_peer._difference(near[:1], theirs[:1]) == pytest.approx(2.5e-5)
    for far, words in ((1.998, "0.001"), (np.nan, "nan")):
        with pytest.raises(ValueError, match=rf"differ by {words} .* 0\.0001 is allowed"):
            scan_block_peer._difference(([4.0, -8.0], [1.0, far]), theirs[:2])


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_missing_peer_is_told(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, missing, None)
    peer = block_peer(2)
    assert peer["rows"] == []
    assert peer["note"].startswith("no comparison with transformers: ")
    assert missing in peer["note"]
