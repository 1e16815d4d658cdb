# SPDX-License-Identifier: Apache-2.0
"""What training scripts wrap around a state dict."""

import numpy as np
import pytest

from mambaout_jax.weights.state_dicts import find_state_dict, without_prefixes

A, B = np.zeros(1), np.ones(2)
STATE = {"stem.weight": A, "head.bias": B}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"state_dict": x, "epoch": 3},
        lambda x: {"model": x, "model_ema": None},
        lambda x: {"checkpoint": {"model": x}, "optimizer": {}},
        lambda x: {"model_ema": x, "lr": 0.1},
    ],
)
@pytest.mark.parametrize("ema", [True, False])
def test_state_dict_is_found(wrap, ema):
    assert find_state_dict(wrap(STATE), ema) == STATE


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model_state_dict", "ema")],
)
def test_averaged_weights_are_taken_if_wanted(raw, averaged):
    both = {raw: {"x": A}, averaged: {"x": B}}
    assert find_state_dict(both, ema=True)["x"] is B
    assert find_state_dict(both, ema=False)["x"] is A


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.backbone."],
)
def test_prefixes_are_taken_off_one_by_one(prefix):
    forms = without_prefixes({f"{prefix}{key}": value for key, value in STATE.items()})
    assert len(forms) == 1 + prefix.count(".")
    assert forms[0] == STATE
    assert all(key.startswith(prefix) for key in forms[-1])


def test_counter_of_averaged_weights_goes_with_their_prefix():
    state = {"n_averaged": np.int64(3), **{f"module.{key}": x for key, x in STATE.items()}}
    assert without_prefixes(state) == [STATE, state]


def test_counter_alone_has_no_prefix():
    assert without_prefixes({"n_averaged": A}) == [{"n_averaged": A}]


def test_prefix_that_not_all_names_have_stays():
    some = {"model.x": A, "head.y": B}
    assert without_prefixes(some) == [some]


def test_dict_that_holds_itself_ends():
    endless = {"epoch": 3}
    endless["model"] = endless
    with pytest.raises(ValueError, match="'model' in it is a dict, not a tensor"):
        find_state_dict(endless, ema=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds nothing, not a state dict"),
        ({0: A}, "the key 0, and names are strings"),
        ({"x": "text"}, "'x' in it is a str, not a tensor"),
        ({"weights_of_mine": STATE}, "is a dict, not a tensor.*another name than state_dict"),
    ],
)
def test_what_is_no_state_dict_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        find_state_dict(given, ema=True)
