# SPDX-License-Identifier: Apache-2.0
"""Sums between two reports: of any names, in and out of checkpoints, finite."""

import dataclasses
import json
import math

import jax.numpy as jnp
import pytest

from mambaout_jax.train.interval import Interval, NotFiniteError


def update(**sums):
    return {name: jnp.float32(value) for name, value in sums.items()}


LOSSES = {"loss": 6.0, "rpn_box": 2.0, "rpn_class": 1.0, "mask": 3.0}


def test_averages_are_over_examples_but_for_what_an_update_has_once():
    interval = Interval()
    interval.add([(1, update(**LOSSES, count=4, gradient_norm=2))])
    interval.add([(2, update(**LOSSES, count=2, gradient_norm=5))])
    assert interval.averages() == {
        "loss": 2.0, "rpn_box": 4 / 6, "rpn_class": 2 / 6, "mask": 1.0, "gradient_norm": 3.5
    }  # fmt: skip


def test_an_interval_resumes_from_a_checkpoint():
    whole, begun = Interval(), Interval()
    updates = [(step, update(loss=step, extra=2 * step, count=3)) for step in (1, 2, 3)]
    whole.add(updates)
    begun.add(updates[:1])
    resumed = Interval(**json.loads(json.dumps(dataclasses.asdict(begun))))
    resumed.add(updates[1:])
    assert resumed == whole
    assert resumed.averages() == {"loss": 6 / 9, "extra": 12 / 9}


@pytest.mark.parametrize("name", ["loss", "rpn_box", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_update_that_is_not_finite_is_named(name, value):
    bad = update(**{**LOSSES, "count": 4, "gradient_norm": 1, name: value})
    words = rf"^the {name.replace('_', ' ')} is {value} at step 14$"
    with pytest.raises(NotFiniteError, match=words) as error:
        Interval().add([(13, update(count=1)), (14, bad), (15, bad)])
    assert error.value.step == 14
