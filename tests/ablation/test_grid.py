# SPDX-License-Identifier: Apache-2.0
"""The grid: parts of a preset, cells that are done once, other settings refused."""

import json

import numpy as np
import pytest

from mambaout_jax.ablation import grid
from mambaout_jax.ablation.grid import choose_preset, run_grid
from mambaout_jax.ablation.presets import PRESETS

TINY = PRESETS["tiny"]


@pytest.fixture
def done(monkeypatch):
    """The cells that were trained, as stand-ins say."""
    trained = []

    def cell(preset, plan, mixer, depth=None):
        trained.append((plan, mixer, depth))
        run = {"accuracy": 0.5, "seconds": 2.0}
        return {"mixer": mixer, "learning_rate": 0.001, "runs": [run]}

    def time_updates(preset, plan, cells):
        for found in cells:
            found["step_milliseconds"] = {"median": 1.0}

    monkeypatch.setattr(grid, "run_cell", cell)
    monkeypatch.setattr(grid, "run_depth", cell)
    monkeypatch.setattr(grid, "time_updates", time_updates)
    return trained


def part(**changes):
    return choose_preset("tiny", tasks=["cue"], mixers=["conv+ssm causal", "conv"], **changes)


def test_a_part_of_a_preset_keeps_its_order():
    preset = part(seeds=3)
    assert list(preset.plans) == ["cue_short", "cue_long"]
    assert preset.mixers == ("conv", "conv+ssm causal")
    assert preset.seeds == (0, 1, 2)
    assert preset.depth_study == ("cue_long", (1, 2))
    one = choose_preset("tiny", tasks=["copying_long", "cue_short"])
    assert list(one.plans) == ["cue_short", "copying_long"]
    assert one.depth_study is None
    assert (one.mixers, one.seeds) == (TINY.mixers, TINY.seeds)
    assert choose_preset("tiny") == TINY


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "huge"}, "preset='huge' is not known; allowed are tiny, small, full"),
        (
            {"tasks": ["cue", "matching"]},
            r"tasks=\['matching'\] are not known; allowed are copying",
        ),
        (
            {"mixers": ["ssm", "rnn"]},
            r"mixers=\['rnn'\] are not known; allowed are conv, conv deep",
        ),
        ({"seeds": 0}, "seeds=0: at least 1 is needed"),
    ],
)
def test_what_is_not_known_is_an_error(asked, message):
    with pytest.raises(ValueError, match=message):
        choose_preset(**({"name": "tiny"} | asked))


def test_every_cell_is_trained_once_and_stands_in_the_file(done, tmp_path):
    path, lines = tmp_path / "grid.json", []
    results = list(run_grid("tiny", part(), path, log=lines.append))
    assert done == [
        ("cue_short", "conv", None), ("cue_short", "conv+ssm causal", None),
        ("cue_long", "conv", None), ("cue_long", "conv+ssm causal", None),
        ("cue_long", "conv", 1), ("cue_long", "conv", 2),
        ("cue_long", "conv+ssm bidirectional", 1),
    ]  # fmt: skip
    assert len(lines) == 7
    assert lines[-2] == "cue_long                 conv, 2 blocks            50.0 %  rate 0.001  2 s"
    result = results[-1]
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert (result["preset"], result["missing"]) == ("tiny", 0)
    assert [task["name"] for task in result["tasks"]] == ["cue_short", "cue_long"]
    assert [cell["mixer"] for cell in result["tasks"][1]["cells"]] == ["conv", "conv+ssm causal"]
    depths = [(cell["mixer"], cell["study_depth"]) for cell in result["depths"]]
    assert depths == [("conv", 1), ("conv", 2), ("conv+ssm bidirectional", 1)]
    assert all("step_milliseconds" in cell for cell in result["depths"])


def test_a_stopped_grid_goes_on_with_the_next_cell(done, tmp_path):
    path = tmp_path / "grid.json"
    stopped = run_grid("tiny", part(), path, log=lambda line: None)
    for _ in range(3):
        assert next(stopped)["missing"] in (6, 5, 4)
    stopped.close()
    before = json.loads(path.read_text())
    assert (before["missing"], len(done)) == (4, 3)
    *_, result = run_grid("tiny", part(), path, log=lambda line: None)
    assert len(done) == len(set(done)) == 7
    assert (result["missing"], len(result["depths"])) == (0, 3)
    assert result["seconds"] >= before["seconds"]
    assert list(run_grid("tiny", part(), path))[-1] == result  # nothing is left to do
    assert len(done) == 7


def test_other_settings_are_refused(done, tmp_path):
    path = tmp_path / "grid.json"
    list(run_grid("tiny", part(), path, log=lambda line: None))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"of other settings \(seeds differ\); give another --out"):
        next(run_grid("tiny", part(seeds=1), path))
    assert path.read_bytes() == before


@pytest.mark.slow
def test_cells_in_processes_are_the_same_as_in_one(tmp_path):
    preset = choose_preset("tiny", tasks=["cue_short"], mixers=["conv", "conv+ssm causal"])
    found = []
    for jobs in (1, 2):
        path = tmp_path / f"{jobs}.json"
        *_, result = run_grid("tiny", preset, path, jobs=jobs, log=lambda line: None)
        cells = result["tasks"][0]["cells"]
        assert [cell["mixer"] for cell in cells] == ["conv", "conv+ssm causal"]
        found.append([[run["accuracy"] for run in cell["runs"]] for cell in cells])
    np.testing.assert_allclose(found[0], found[1], atol=0.05)  # threads add up in another order
