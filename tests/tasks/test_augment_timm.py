# SPDX-License-Identifier: Apache-2.0
"""Mixing and erasing on the draws of timm's own code, recorded by goldens/recipe/make.py."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from support.places import GOLDENS

from mambaout_jax.tasks.augment import cutmix_box, erase_box, mix_with_mirror
from mambaout_jax.tasks.classification import soft_targets

RECIPE = GOLDENS / "recipe"


def timm_boxes(name):
    return json.loads((RECIPE / "boxes.json").read_text(encoding="utf-8"))[name]


def test_cutmix_boxes_are_timms_on_its_draws():
    parities = set()
    for size, weight, centre, (top, bottom, left, right), left_over in timm_boxes("cutmix"):
        low, high = cutmix_box(tuple(size), jnp.float32(weight), jnp.asarray(centre, jnp.float32))
        want = np.array([[top, left], [bottom, right]])
        sides = (np.asarray(size) * np.sqrt(1 - weight)).astype(int)
        parities |= {tuple(sides % 2)}
        # timm 1.0.31 keeps the last row and column of odd sides, which timm 0.6 did not.
        want[1] = np.minimum(want[1], np.asarray(centre) + sides // 2)
        np.testing.assert_array_equal([low, high], want, err_msg=f"{size} {weight} {centre}")
        if not (sides % 2).any():
            share = np.prod(np.asarray(high) - np.asarray(low)) / np.prod(size)
            assert 1 - share == pytest.approx(left_over, abs=1e-6)
    assert parities == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_erased_boxes_are_timms_on_its_draws():
    later = empty = 0
    for size, uniform, corner, box in timm_boxes("erase"):
        area, log_ratio = (np.full(10, tail, np.float32) for tail in (0.02, 0.0))
        tries = len(uniform) // 2
        area[:tries], log_ratio[:tries] = uniform[::2], uniform[1::2]
        if box is None:
            empty += 1
            corner, want = (0.5, 0.5), None
        else:
            later += tries > 1
            want = np.array(box).reshape(2, 2).T  # (top, left), (bottom, right)
            choices = np.asarray(size) - (want[1] - want[0]) + 1
            corner = (np.array(corner) + 0.5) / choices
        low, high = erase_box(
            tuple(size), jnp.asarray(area), jnp.exp(log_ratio), jnp.asarray(corner, jnp.float32)
        )
        if want is None:
            np.testing.assert_array_equal(low, high)
        else:
            np.testing.assert_array_equal([low, high], want, err_msg=f"{size} {uniform}")
    assert later > 3
    assert empty < 5


def test_mixed_groups_are_timms_on_its_draws():
    with np.load(RECIPE / "mixing.npz") as arrays:
        golden = {name: arrays[name] for name in arrays}
    images = golden["images"].transpose(0, 2, 3, 1).astype(np.float32)
    size = images.shape[1:3]
    targets = soft_targets(jnp.asarray(golden["labels"]), 5, 0.1)
    draws = json.loads(str(golden["draws"]))
    methods = set()
    for i, drawn in enumerate(draws):
        weight = drawn["weight"]
        sides = (np.asarray(size) * np.sqrt(1 - weight)).astype(int)
        if drawn["cutmix"] and (sides % 2).any():
            continue  # see the boxes
        methods |= {drawn["cutmix"]}
        centre = jnp.asarray(drawn["centre"] or (0, 0), jnp.float32)
        weight = jnp.float32(weight)
        box = cutmix_box(size, weight, centre)
        mixed, mixed_targets = mix_with_mirror(
            jnp.asarray(images), targets, jnp.asarray(drawn["cutmix"]), weight, box
        )
        mixed = np.asarray(mixed).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(mixed, golden["mixed"][i], rtol=0, atol=1e-4)
        np.testing.assert_allclose(mixed_targets, golden["targets"][i], rtol=0, atol=1e-6)
        # timm's loader mixes before it normalises, and rounds to whole levels.
        np.testing.assert_allclose(mixed, golden["collated"][i], rtol=0, atol=0.5 + 1e-4)
    assert methods == {True, False}
