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
from mambaout_jax.ablation.grid import PRESETS, build_models
from mambaout_jax.ablation.tasks import Examples, TokenTask
from mambaout_jax.ablation.trainer import Recipe, Rows, TokenObjective, Trainer
from mambaout_jax.evaluation.evaluator import Evaluator
from mambaout_jax.runtime.mesh import make_mesh

RECIPE = Recipe(60, 8, 1e-2, 0.05, 3)


def echo_task(rng, length=6):
    """Each token asks for the one before it: two taps of a convolution will do."""
    ids = rng.integers(3, size=(80, 1, length)).astype(np.int32)
    targets = np.concatenate((np.full((80, 1), -1), ids[:, 0, :-1]), axis=1).astype(np.int32)
    train, test = Examples(ids[:61], targets[:61]), Examples(ids[61:], targets[61:])
    return TokenTask("echo", True, 3, 3, train, test)


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
    assert {name: float(value) for name, value in found.items()} == {
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


def test_batches_hold_each_example_once_per_epoch():
    rows = trainer.order(np.random.default_rng(0), 7, 5, 4).ravel()
    assert rows.shape == (20,)
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert rows[:7].tolist() != rows[7:14].tolist()


def test_training_learns_and_follows_the_seed(rng):
    task = echo_task(rng)
    preset = dataclasses.replace(PRESETS["tiny"], width=16)
    trained = Trainer(build_models(task, preset)["conv"], task, RECIPE)
    one, same, other = (trained.train(seed) for seed in (0, 0, 1))
    assert [point["step"] for point in one["curve"]] == [20, 40, 60]
    assert one["curve"][0]["bits"] > 0.2
    assert one["accuracy"] == one["curve"][-1]["accuracy"] == 1
    assert one["bits"] == one["curve"][-1]["bits"] < 0.1
    assert one["curve"] == same["curve"]
    assert one["curve"] != other["curve"]


def test_first_update_is_adamw_by_hand(rng):
    task = echo_task(rng)
    recipe = RECIPE._replace(steps=20, weight_decay=0.1)  # two updates warm up
    trained = Trainer(build_models(task, PRESETS["tiny"])["conv"], task, recipe)
    state = trained.start(0)
    states, losses = [jax.device_get(state.params)], []
    for _ in range(2):  # the first is at rate 0
        state, sums = trained.update(state, np.arange(8))
        states.append(jax.device_get(state.params))
        losses.append(float(sums["loss"]))
    assert losses[0] == losses[1]
    for name, decays in (("classifier", True), ("positions", False)):
        before, unmoved, after = (jax.tree.leaves(params[name])[-1] for params in states)
        np.testing.assert_array_equal(before, unmoved)
        shift = after - before + 0.1 * decays * recipe.learning_rate / 2 * before
        # Equal gradients twice: Adam's quotient is the gradient's sign.
        moves = np.abs(shift)[np.abs(shift) > 1e-6]
        np.testing.assert_allclose(moves, recipe.learning_rate / 2, rtol=0.02)
        assert moves.size > 10


def test_an_update_can_be_timed_again_and_again(rng):
    task = echo_task(rng)
    model = build_models(task, PRESETS["tiny"])["conv"]
    update = Trainer(model, task, RECIPE._replace(steps=2)).repeated_update()
    losses = [float(update()["loss"]) for _ in range(4)]
    assert losses[0] == losses[1] > losses[3]  # at rate 0 first
