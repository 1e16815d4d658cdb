# SPDX-License-Identifier: Apache-2.0
"""Hits and cross-entropy against float64 numpy: ties, NaN, several right classes, competitors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.metrics.hits import hit_sums, rank_of_right


def one_label(labels, classes):
    """`right` and `competing` where each example has one label and all classes compete."""
    right = np.eye(classes, dtype=bool)[np.asarray(labels)]
    return jnp.asarray(right), jnp.ones_like(right)


def sums_of(logits, labels, mask):
    right, competing = one_label(labels, logits.shape[1])
    sums = jax.jit(hit_sums)(jnp.asarray(logits), right, competing, jnp.asarray(mask))
    return {name: float(value) for name, value in sums.items()}


def test_sums_of_single_labels_are_those_of_a_sort(rng):
    logits = rng.standard_normal((32, 9)).astype(np.float32)
    labels, mask = rng.integers(0, 9, 32), rng.random(32) < 0.7
    exact = logits.astype(np.float64)
    losses = np.log(np.exp(exact).sum(-1)) - exact[np.arange(32), labels]
    order = np.argsort(-logits, axis=-1)
    assert sums_of(logits, labels, mask) == {
        "loss": pytest.approx(losses[mask].sum(), rel=1e-6),
        "top1": (order[:, 0] == labels)[mask].sum(),
        "top5": (order[:, :5] == labels[:, None]).any(-1)[mask].sum(),
        "count": mask.sum(),
    }


def test_sums_follow_competitors_answers_and_mask():
    logits = np.tile(np.arange(8.0)[::-1], (4, 1))  # class 0 likeliest, class 7 least
    competing = np.isin(np.arange(8), [1, 3, 4, 5, 6, 7])
    right = np.zeros((4, 8), bool)
    right[0, [7, 3]] = right[1, 1] = right[3, 7] = True  # the third has none
    sums = jax.jit(hit_sums)(
        jnp.asarray(logits), jnp.asarray(right), jnp.tile(competing, (4, 1)), jnp.ones(4, bool)
    )
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


def test_a_constant_output_is_not_a_hit_for_every_class():
    sums = sums_of(np.zeros((7, 7), np.float32), range(7), np.ones(7, bool))
    assert (sums["top1"], sums["top5"]) == (1, 5)


def test_nan_is_a_miss_and_its_loss_is_seen():
    logits = np.zeros((3, 7), np.float32)
    logits[:, 4] = np.nan
    sums = sums_of(logits, [0, 1, 4], np.ones(3, bool))
    assert (sums["top1"], sums["top5"]) == (0, 2)  # one NaN stands before class 0 and class 1
    assert np.isnan(sums["loss"])
    everything = sums_of(np.full((3, 7), np.nan, np.float32), [0, 1, 2], np.ones(3, bool))
    assert (everything["top1"], everything["top5"]) == (0, 0)


def test_what_is_masked_is_not_read():
    logits = np.zeros((2, 3), np.float32)
    logits[1] = np.nan
    assert sums_of(logits, [0, 0], [True, False]) == {
        "loss": pytest.approx(np.log(3)), "top1": 1, "top5": 1, "count": 1
    }  # fmt: skip


def test_rank_counts_likelier_competitors(rng):
    logits = rng.integers(0, 4, (50, 6)).astype(np.float32)  # with many ties
    labels = rng.integers(0, 6, 50)
    ranks = jax.jit(rank_of_right)(jnp.asarray(logits), *one_label(labels, 6))
    order = np.argsort(-logits, axis=-1, kind="stable")
    np.testing.assert_array_equal(ranks, np.argmax(order == labels[:, None], axis=-1))


def test_bfloat16_logits_are_added_up_in_float32():
    right, competing = one_label([0] * 512, 3)
    sums = jax.jit(hit_sums)(
        jnp.zeros((512, 3), jnp.bfloat16), right, competing, jnp.ones(512, bool)
    )
    assert sums["loss"].dtype == jnp.float32
    assert float(sums["loss"]) == pytest.approx(512 * np.log(3), rel=1e-6)
