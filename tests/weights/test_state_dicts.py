# SPDX-License-Identifier: Apache-2.0
"""What training scripts wrap around a state dict."""

import numpy as np
import pytest

from mambaout_jax.weights.state_dicts import find_state_dict

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
        lambda x: {"state_dict": {f"model.{key}": y for key, y in x.items()}, "callbacks": {}},
        lambda x: {f"module.{key}": y for key, y in x.items()},
        lambda x: {f"_orig_mod.module.{key}": y for key, y in x.items()},
        lambda x: {f"module._orig_mod.{key}": y for key, y in x.items()},
        lambda x: {f"module.backbone.{key}": y for key, y in x.items()},
        lambda x: {"n_averaged": np.int64(3), **{f"module.{key}": y for key, y in x.items()}},
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


def test_prefix_that_not_all_names_have_stays():
    some = {"model.x": A, "head.y": B}
    assert find_state_dict(some, ema=True) == some


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
