# SPDX-License-Identifier: Apache-2.0
"""A cell: the rate is chosen on the validation split with one seed, the test split is for all."""

import dataclasses
import json

import pytest

from mambaout_jax.ablation import cells
from mambaout_jax.ablation.cells import describe_plan, run_cell, run_depth, time_updates
from mambaout_jax.ablation.matching import SEES_THE_ANSWER
from mambaout_jax.ablation.presets import PRESETS

TINY = PRESETS["tiny"]
CALLS = []


class Scripted:
    """Stands in for a trainer: what a seed and a rate reach is written down here."""

    compile_seconds = 1.5

    def __init__(self, model, task, recipe):
        CALLS.clear()

    def train(self, seed, learning_rate):
        CALLS.append((seed, learning_rate))
        return {
            "seed": seed, "learning_rate": learning_rate,
            "accuracy": {4e-3: 0.9}.get(learning_rate, 0.3) + seed / 100,
            "validation": {1e-3: 0.6, 4e-3: 0.6, 2e-3: 0.5}[learning_rate],
        }  # fmt: skip


def test_rate_is_the_best_on_the_validation_split_and_the_smaller_of_equals(monkeypatch):
    monkeypatch.setattr(cells, "Trainer", Scripted)
    preset = dataclasses.replace(TINY, seeds=(3, 4, 5), learning_rates=(4e-3, 1e-3, 2e-3))
    cell = run_cell(preset, "cue_long", "conv")
    # 4e-3 would be best on the test split.
    assert cell["learning_rate"] == 1e-3
    assert cell["sweep"] == {"0.001": 0.6, "0.002": 0.5, "0.004": 0.6}
    assert CALLS == [(3, 1e-3), (3, 2e-3), (3, 4e-3), (4, 1e-3), (5, 1e-3)]
    assert [run["accuracy"] for run in cell["runs"]] == pytest.approx([0.33, 0.34, 0.35])
    assert (cell["mixer"], cell["width"], cell["depth"], cell["reach"]) == ("conv", 8, 1, 1)
    assert cell["compile_seconds"] == 1.5


def test_a_cell_that_cannot_be_run_says_why(monkeypatch):
    monkeypatch.setattr(cells, "Trainer", Scripted)
    found = run_cell(TINY, "copying_long", "conv+ssm bidirectional")
    assert found == {"mixer": "conv+ssm bidirectional", "reason": SEES_THE_ANSWER}
    dear = dataclasses.replace(PRESETS["full"], heads=16, state_size=1)
    found = run_cell(dear, "flip_flop_long", "attention causal")
    assert found["mixer"] == "attention causal"
    assert "of the SSM in flip_flop of 128 tokens: with 16 channels" in found["reason"]


def test_deeper_convolutions_keep_their_width(monkeypatch):
    monkeypatch.setattr(cells, "Trainer", Scripted)
    one, two = (run_depth(TINY, "cue_long", "conv", depth) for depth in (1, 2))
    assert [cell["depth"] for cell in (one, two)] == [1, 2]
    assert [cell["width"] for cell in (one, two)] == [8, 8]
    assert one["hidden"] == two["hidden"]
    assert 1.8 < two["macs"] / one["macs"] < 2


def test_a_plan_is_described_with_its_length_and_chance():
    found = json.loads(json.dumps(describe_plan(TINY, "copying_long")))
    assert (found["name"], found["length"], found["options"]) == (
        "copying_long",
        16,
        {"length": 16},
    )
    assert (found["long"], found["autoregressive"], found["dense"]) == (False, True, True)
    assert found["length_ratio"] == 16 / 48
    assert (found["train"], found["test"], found["steps"], found["learned"]) == (48, 32, 3, 0.9)
    assert describe_plan(TINY, "cue_long")["far"] == 3
    small = describe_plan(dataclasses.replace(PRESETS["small"], held_out=4), "cue_long")
    assert (small["length"], small["long"], small["far"]) == (196, True, 7)


@pytest.mark.slow
def test_a_cell_is_trained_and_timed():
    cell = json.loads(json.dumps(run_cell(TINY, "cue_long", "conv")))
    assert [run["seed"] for run in cell["runs"]] == [0, 1]
    for run in cell["runs"]:
        assert 0 <= run["accuracy"] <= 1
        by_distance = run["by_distance"]
        assert sum(by_distance["count"]) == 32 * 16
        assert by_distance["width"] == 1
        far = slice(3, None)  # half of six
        assert run["accuracy"] == pytest.approx(
            sum(by_distance["hits"][far]) / sum(by_distance["count"][far])
        )
    left_out = {"mixer": "attention full", "reason": "x"}
    timed = [cell, left_out]
    time_updates(TINY, "cue_long", timed)
    times = cell["step_milliseconds"]
    assert 0 < times["min"] <= times["median"] <= times["max"]
    assert left_out == {"mixer": "attention full", "reason": "x"}
