# SPDX-License-Identifier: Apache-2.0
"""Training of the grid: what is scored, in which order, what is left out, that it learns."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ablation import grid
from mambaout_jax.ablation.grid import PRESETS, SEES_THE_ANSWER, build_models
from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.tasks import TASKS, Examples, Task
from mambaout_jax.analysis.cost import count


def echo_task(rng, length=6):
    """Each token asks for the one before it: two taps of a convolution will do."""
    ids = rng.integers(3, size=(80, 1, length)).astype(np.int32)
    targets = np.concatenate((np.full((80, 1), -1), ids[:, 0, :-1]), axis=1).astype(np.int32)
    train, test = Examples(ids[:61], targets[:61]), Examples(ids[61:], targets[61:])
    return Task("echo", True, 3, 3, train, test)


def test_scores_are_sums_over_scored_targets(rng):
    logits = rng.standard_normal((2, 4, 3)).astype(np.float32)
    targets = np.array([[-1, 2, 0, 1], [1, -1, -1, 0]], np.int32)
    expected = np.zeros(3)
    for row, target in zip(logits.reshape(-1, 3).astype(np.float64), targets.ravel(), strict=True):
        if target >= 0:
            expected += (
                math.log(np.exp(row).sum()) - row[target],
                row.argmax() == target,
                1,
            )
    found = grid.scores(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_evaluation_counts_every_target_once(rng):
    task = echo_task(rng)

    def tally(params, inputs, targets):
        assert len(inputs) == 8
        asked = targets >= 0
        return np.array([2 * asked.sum(), inputs[:, 0][asked].sum(), asked.sum()], np.float32)

    trainer = grid.Trainer(None, None, tally, 0.0)
    found = grid.evaluate(trainer, None, task.test, 8)  # 19 examples, in three batches
    assert found["bits"] == pytest.approx(2 / math.log(2))
    assert found["accuracy"] == pytest.approx(task.test.inputs[:, 0, 1:].mean())


def test_batches_hold_each_example_once_per_epoch():
    rows = grid._order(np.random.default_rng(0), 7, 5, 4).ravel()
    assert rows.shape == (20,)
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert rows[:7].tolist() != rows[7:14].tolist()


def test_training_learns_and_follows_the_seed(rng):
    task = echo_task(rng)
    preset = dataclasses.replace(
        PRESETS["tiny"], width=16, batch_size=8, learning_rate=1e-2, evaluations=3
    )
    model = build_models(task, preset)["conv"]
    trainer = grid.build_trainer(model, task, preset, 60)
    one, same, other = (grid.train(trainer, task, preset, 60, seed) for seed in (0, 0, 1))
    assert [point["step"] for point in one["curve"]] == [20, 40, 60]
    assert one["curve"][0]["bits"] > 0.3
    assert one["accuracy"] == one["curve"][-1]["accuracy"] == 1
    assert one["bits"] == one["curve"][-1]["bits"] < 0.1
    assert one["curve"] == same["curve"]
    assert one["curve"] != other["curve"]


def test_first_update_is_adamw_by_hand(rng):
    task = echo_task(rng)
    preset = dataclasses.replace(PRESETS["tiny"], batch_size=8, weight_decay=0.1)
    model = build_models(task, preset)["conv"]
    trainer = grid.build_trainer(model, task, preset, 20)  # two updates warm up
    state = trainer.start(jax.random.key(0))
    batch = [x[:8] for x in task.train]
    unmoved, loss = trainer.step(state, *batch)  # at rate 0
    moved, again = trainer.step(unmoved, *batch)
    assert loss == again
    for name, decays in (("classifier", True), ("positions", False)):
        before, after = (jax.tree.leaves(s.params[name])[-1] for s in (state, moved))
        np.testing.assert_array_equal(before, jax.tree.leaves(unmoved.params[name])[-1])
        shift = np.asarray(after - before) + 0.1 * decays * preset.learning_rate / 2 * before
        # Equal gradients twice: Adam's quotient is the gradient's sign.
        moves = np.abs(shift)[np.abs(shift) > 1e-6]
        np.testing.assert_allclose(moves, preset.learning_rate / 2, rtol=0.02)
        assert moves.size > 10


@pytest.mark.parametrize("name", ["digits", "recall", "other_scan"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_mixers_cost_the_same_and_none_sees_the_answer(name, size):
    preset = PRESETS[size]
    plan = preset.plans[name]
    made = {"train": 2, "test": 2} if plan.train else {}
    task = TASKS[name](**plan.options, **made)
    models = build_models(task, preset)
    ahead = {"conv+ssm bidirectional", "attention full"}
    assert set(models) == set(MIXERS) - (ahead if task.autoregressive else set())
    macs = [count(model, (*task.grid, task.features)).macs for model in models.values()]
    assert max(macs) <= 1.02 * min(macs)
    assert (task.length > 6 * preset.width) == (name != "digits")


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_has_every_task_and_repeats_seeds(size):
    assert set(PRESETS[size].plans) == set(TASKS)
    assert len(set(PRESETS[size].seeds)) >= 2


@pytest.mark.slow
def test_run_of_a_task_reports_each_mixer_and_why_one_is_left_out():
    preset = dataclasses.replace(
        PRESETS["tiny"], plans={"copying": PRESETS["tiny"].plans["copying"]}
    )
    lines = []
    result = json.loads(json.dumps(grid.run_task("copying", preset, lines.append)))
    assert (result["length"], result["long"], result["autoregressive"]) == (60, True, True)
    assert result["length_ratio"] == 60 / 48
    assert [cell["mixer"] for cell in result["cells"]] == list(MIXERS)
    left_out = [cell["mixer"] for cell in result["cells"] if "reason" in cell]
    assert left_out == ["conv+ssm bidirectional", "attention full"]
    assert {cell.get("reason") for cell in result["cells"]} == {None, SEES_THE_ANSWER}
    for cell in (cell for cell in result["cells"] if "runs" in cell):
        assert [run["seed"] for run in cell["runs"]] == [0, 1]
        assert all(0 <= run["accuracy"] <= 1 for run in cell["runs"])
        low, middle, high = (cell["step_milliseconds"][x] for x in ("min", "median", "max"))
        assert 0 < low <= middle <= high
    assert len(lines) == 3


def test_grid_tells_after_each_task_what_there_is_and_what_is_missing(monkeypatch):
    monkeypatch.setattr(grid, "run_task", lambda name, preset, log: name)
    names = list(PRESETS["tiny"].plans)
    results = list(grid.run_grid("tiny"))
    assert [result["tasks"] for result in results] == [names[: i + 1] for i in range(6)]
    assert [result["missing"] for result in results] == [names[i + 1 :] for i in range(6)]
    assert (results[0]["preset"], results[0]["settings"]["width"]) == ("tiny", 8)
    assert results[0]["environment"]["platform"] == "cpu"
    with pytest.raises(ValueError, match="preset='huge' is not known; allowed are tiny, small"):
        next(grid.run_grid("huge"))
