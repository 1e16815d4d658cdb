# SPDX-License-Identifier: Apache-2.0
"""Training of a token model: what is scored, in which order, that it learns, its first update."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ablation import trainer
from mambaout_jax.ablation.examples import Examples, TokenTask
from mambaout_jax.ablation.matching import arranged
from mambaout_jax.ablation.presets import PRESETS
from mambaout_jax.ablation.trainer import Recipe, Rows, TokenObjective, Trainer, bin_width
from mambaout_jax.evaluation.evaluator import Evaluator
from mambaout_jax.runtime.mesh import make_mesh

RECIPE = Recipe(60, 8, 0.05, 3)
RATE = 1e-2
PARTS = (slice(0, 50), slice(50, 61), slice(61, 80))  # training, validation, test


def echo_task(rng, length=6):
    """Each token asks for the one before it: two taps of a convolution will do."""
    ids = rng.integers(3, size=(80, 1, length)).astype(np.int32)
    targets = np.concatenate((np.full((80, 1), -1), ids[:, 0, :-1]), axis=1).astype(np.int32)
    splits = (Examples(ids[part], targets[part]) for part in PARTS)
    return TokenTask("echo", True, 3, 3, *splits)


def conv(task, **changes):
    return arranged("conv", task, dataclasses.replace(PRESETS["tiny"], **changes))


def test_scores_are_sums_over_scored_targets(rng):
    logits = rng.standard_normal((2, 4, 3)).astype(np.float32)
    targets = np.array([[-1, 2, 0, 1], [1, -1, -1, 0]], np.int32)
    loss, hits, count = 0.0, 0, 0
    for row, target in zip(logits.reshape(-1, 3).astype(np.float64), targets.ravel(), strict=True):
        if target >= 0:
            loss += math.log(np.exp(row).sum()) - row[target]
            hits += row.argmax() == target
            count += 1
    found = trainer.scores(jnp.asarray(logits), jnp.asarray(targets))
    assert all(value.shape == (2, 4) for value in found.values())
    assert {name: float(value.sum()) for name, value in found.items()} == {
        "loss": pytest.approx(loss, rel=1e-6), "hits": hits, "count": count
    }  # fmt: skip


class Echo(nn.Module):
    """Each token's own id is its likeliest answer, by a logit of 2."""

    @nn.compact
    def __call__(self, x):
        return 2.0 * x[:, 0]


def test_evaluation_counts_every_target_once(rng):
    test = echo_task(rng).test
    config = RECIPE.config()  # batches of 8, of 19 examples
    evaluator = Evaluator(Echo(), TokenObjective(3), config, make_mesh(1, jax.devices()[:1]))
    partial = evaluator.partials({"it": {}}, Rows(test))["it"]
    asked = test.targets >= 0
    right = (test.inputs[:, 0] == test.targets)[asked]
    metrics = TokenObjective(3).metrics(partial)
    assert partial["count"] == asked.sum() == 19 * 5
    assert metrics["accuracy"] == pytest.approx(right.mean())
    nats = math.log(math.exp(2) + 2) - 2 * right.mean()
    assert metrics["bits"] == pytest.approx(nats / math.log(2), rel=1e-6)


def test_far_answers_count_and_near_ones_are_told_by_distance():
    ids = np.array([[[0, 1, 2, 0]], [[1, 1, 0, 2]], [[2, 2, 2, 2]]], np.int32)
    targets = np.array([[0, 1, 0, -1], [1, 0, 0, 2], [-1, -1, 2, 1]], np.int32)
    distances = np.array([[1, 3, 4, 0], [5, 2, 3, 1], [0, 0, 5, 5]], np.int32)
    objective = TokenObjective(3, far=3, farthest=5)
    evaluator = Evaluator(Echo(), objective, RECIPE.config(), make_mesh(1, jax.devices()[:1]))
    partial = evaluator.partials({"it": {}}, Rows(Examples(ids, targets, distances)))["it"]
    # At least 3 away: 1 = 1, 2 is not 0, 1 = 1, 0 = 0, 2 = 2, 2 is not 1.
    assert (partial["hits"], partial["count"]) == (4, 6)
    assert objective.metrics(partial)["accuracy"] == 4 / 6
    assert partial["count_by_distance"].tolist() == [0, 2, 1, 2, 1, 3]
    assert partial["hits_by_distance"].tolist() == [0, 2, 0, 2, 0, 2]


def test_distances_are_told_in_at_most_sixteen_groups():
    assert [bin_width(farthest) for farthest in (5, 15, 16, 63, 255, 783)] == [1, 1, 2, 4, 16, 49]


def test_batches_hold_each_example_once_per_epoch():
    rows = trainer.order(np.random.default_rng(0), 7, 5, 4).ravel()
    assert rows.shape == (20,)
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert rows[:7].tolist() != rows[7:14].tolist()


@pytest.mark.slow
def test_training_learns_and_follows_the_seed(rng):
    task = echo_task(rng)
    trained = Trainer(conv(task, width=16), task, RECIPE)
    one, same, other = (trained.train(seed, RATE) for seed in (0, 0, 1))
    assert [point["step"] for point in one["curve"]] == [20, 40, 60]
    assert one["curve"][0]["bits"] > 0.2
    assert one["accuracy"] == one["validation"] == one["curve"][-1]["accuracy"] == 1
    assert one["bits"] < 0.1
    assert one["bits"] != one["curve"][-1]["bits"] < 0.1  # of two splits
    assert one["by_distance"] is None
    assert one["curve"] == same["curve"]
    assert one["curve"] != other["curve"]


def test_first_updates_are_adamw_by_hand_at_every_rate(rng):
    task = echo_task(rng)
    recipe = RECIPE._replace(steps=20, weight_decay=0.1)  # two updates warm up
    trained = Trainer(conv(task), task, recipe)
    for rate in (RATE, 3e-3):  # one program for both
        state = trained.start(0, rate)
        states, losses = [jax.device_get(state.params)], []
        for _ in range(2):  # the first is at rate 0
            state, sums = trained.update(state, np.arange(8))
            states.append(jax.device_get(state.params))
            losses.append(float(sums["loss"]))
        assert losses[0] == losses[1]
        for name, decays in (("classifier", True), ("positions", False)):
            before, unmoved, after = (jax.tree.leaves(params[name])[-1] for params in states)
            np.testing.assert_array_equal(before, unmoved)
            shift = after - before + 0.1 * decays * rate / 2 * before
            # Equal gradients twice: Adam's quotient is the gradient's sign.
            moves = np.abs(shift)[np.abs(shift) > rate / 1e4]
            np.testing.assert_allclose(moves, rate / 2, rtol=0.02)
            assert moves.size > 10


def test_an_update_can_be_timed_again_and_again(rng):
    task = echo_task(rng)
    update = Trainer(conv(task), task, RECIPE._replace(steps=2)).repeated_update()
    losses = [float(update()["loss"]) for _ in range(4)]
    assert losses[0] == losses[1] > losses[3]  # at rate 0 first
