# SPDX-License-Identifier: Apache-2.0
"""What is added up over the images of a suite: where all classes compete, what classification adds
up; else against numpy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.evaluation.suites import suite_sums
from mambaout_jax.tasks.classification import Classification


def test_sums_are_those_of_classification_where_all_compete(rng):
    logits = rng.standard_normal((32, 1000)).astype(np.float32)
    logits[1], logits[2, 7] = 0.0, np.nan  # equal ones, and none
    labels = rng.integers(0, 1000, 32)
    mask = rng.random(32) < 0.7
    mask[1:3] = True
    logits[0, labels[0]], mask[0] = 9, False
    batch = {name: jnp.asarray(array) for name, array in (("label", labels), ("mask", mask))}
    one = np.arange(1000)[:, None]
    sums = suite_sums(jnp.asarray(logits), *batch.values(), one, np.ones(1000, bool))

    class Logits(nn.Module):
        def __call__(self, images, train):
            return images

    theirs = Classification(1000).evaluate(Logits(), {}, {**batch, "image": jnp.asarray(logits)})
    for name in ("top1", "top5", "count"):
        assert float(sums[name]) == float(theirs[name])
    assert np.isnan(float(sums["loss"]))
    assert np.isnan(float(theirs["loss"]))


def test_sums_follow_competitors_answers_and_mask():
    logits = np.tile(np.arange(8.0)[::-1], (4, 1))  # class 0 likeliest, class 7 least
    competing = np.isin(np.arange(8), [1, 3, 4, 5, 6, 7])
    answers = np.array([[7, 3], [1, -1], [-1, -1], [7, -1]])
    labels, mask = jnp.arange(4), jnp.ones(4, bool)
    sums = suite_sums(jnp.asarray(logits), labels, mask, answers, competing)
    assert {name: float(value) for name, value in sums.items()} == {
        "top1": 1.0,  # class 1
        "top5": 2.0,  # class 3 is the second of six, class 7 the sixth
        "count": 3.0,
        "loss": pytest.approx(
            sum(
                np.log(np.exp(logits[0, competing]).sum()) - np.log(np.exp(logits[0, right]).sum())
                for right in ([7, 3], [1], [7])
            ),
            rel=1e-5,
        ),
    }
