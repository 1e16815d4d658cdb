# SPDX-License-Identifier: Apache-2.0
"""Machines to compile for: their sizes, and what is said where a compiler is missing."""

import importlib.util

import jax
import pytest

from mambaout_jax.aot.targets import TARGETS, compiler_options, devices_of, find_target, versions


def test_an_unknown_target_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"target='v5e' is not known; allowed are v5e-8, v5e-32"):
        find_target("v5e")


def test_topologies_have_the_chips_that_their_names_say():
    for name, target in TARGETS.items():
        sides = target.topology.rpartition(":")[2]
        if sides:
            product = 1
            for side in sides.split("x"):
                product *= int(side)
            assert product == target.chips, name


@pytest.mark.parametrize(("target", "extra"), [("v5e-32", "aot-tpu"), ("h100", "aot-gpu")])
def test_a_missing_compiler_says_how_to_get_it(monkeypatch, target, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"target='{target}'.*mambaout-jax\[{extra}\]"):
        devices_of(target)


def test_here_means_the_devices_of_this_machine():
    assert list(devices_of("here")) == jax.devices()
    assert versions()["jax"] == jax.__version__


def test_only_a_gpu_that_is_not_here_is_compiled_for_differently():
    changed = {name for name in TARGETS if compiler_options(name)}
    assert changed == {"h100", "h100x8"}
