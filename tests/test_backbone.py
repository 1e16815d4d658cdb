# SPDX-License-Identifier: Apache-2.0
"""The contract's helpers."""

import pytest

from mambaout_jax.backbone import subtree


def test_subtree_takes_one_submodule_of_every_collection():
    variables = {
        "params": {"backbone": {"a": 1}, "head": {"b": 2}},
        "batch_stats": {"backbone": {"mean": 3}},
    }
    assert subtree(variables, "backbone") == {"params": {"a": 1}, "batch_stats": {"mean": 3}}
    assert subtree(variables, "head") == {"params": {"b": 2}}


def test_subtree_names_what_there_is():
    with pytest.raises(KeyError, match=r"no submodule 'neck' .*\['backbone', 'head'\]"):
        subtree({"params": {"backbone": {}, "head": {}}}, "neck")
