# SPDX-License-Identifier: Apache-2.0
"""The grid: equal costs, what is left out and why, what is reported after each task."""

import dataclasses
import json

import pytest

from mambaout_jax.ablation import grid
from mambaout_jax.ablation.grid import PRESETS, SEES_THE_ANSWER, build_models
from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.tasks import TOKEN_TASKS
from mambaout_jax.analysis.cost import count


@pytest.mark.parametrize("name", ["digits", "recall", "other_scan"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_mixers_cost_the_same_and_none_sees_the_answer(name, size):
    preset = PRESETS[size]
    plan = preset.plans[name]
    made = {"train": 2, "test": 2} if plan.train else {}
    task = TOKEN_TASKS[name](**plan.options, **made)
    models = build_models(task, preset)
    ahead = {"conv+ssm bidirectional", "attention full"}
    assert set(models) == set(MIXERS) - (ahead if task.autoregressive else set())
    macs = [count(model, (*task.grid, task.features)).macs for model in models.values()]
    assert max(macs) <= 1.02 * min(macs)
    assert (task.length > 6 * preset.width) == (name != "digits")


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_has_every_task_and_repeats_seeds(size):
    assert set(PRESETS[size].plans) == set(TOKEN_TASKS)
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
