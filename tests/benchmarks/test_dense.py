# SPDX-License-Identifier: Apache-2.0
"""The comparison of dense models: the bars before the clock, rows and table."""

import json
import types

import numpy as np
import pytest

from mambaout_jax.benchmarks import dense
from mambaout_jax.benchmarks.dense_models import OURS


class Side:
    """In place of both sides: computes constants."""

    title = "peer"
    objects = 100

    def __init__(self, backbone, inputs, third=None):
        self.third = third
        self.losses = {}

    def state_dict(self):
        return {"weight": 1}

    def outputs(self):
        return {"logits": np.array([0.0, 1.0]), "masks": np.array([0.0, 2.0])}

    def found(self):
        return self.objects

    def calls(self, passed):
        def call():
            self.losses = {"main": 5.0, "auxiliary": 2.0, "rpn_class": 0.7, "class": 4.0}
            return np.ones(1)

        return call


class Ours(Side):
    def calls(self, passed):
        return super().calls(passed), {"compile_seconds": 12.5, "temp_bytes": 3 * 2**20}


@pytest.fixture
def sides(monkeypatch):
    monkeypatch.setattr(dense, "missing_packages", lambda task: ())
    monkeypatch.setattr(dense, "_versions", lambda tasks: {"torch": "2", "timm": "1"})
    torch = types.SimpleNamespace(manual_seed=lambda seed: None)
    monkeypatch.setattr(dense.importlib, "import_module", lambda name: torch)
    monkeypatch.setattr(dense, "OURS", dict.fromkeys(dense.TASKS, Ours))
    monkeypatch.setattr(dense, "THEIRS", dict.fromkeys(dense.TASKS, Side))


def test_every_task_and_pass_is_a_row_against_its_peer(sides, capsys):
    kept = []
    result = dense.run(size=(8, 12), rounds=2, keep=lambda result: kept.append(len(result["rows"])))
    assert kept == [1, 2, 3, 4]
    assert [(row["task"], row["pass"]) for row in result["rows"]] == [
        (task, name) for task in dense.TASKS for name in dense.PASSES
    ]
    row = json.loads(json.dumps(result))["rows"][3]
    assert row["size"] == [8, 12]
    assert row["differences"] == {"logits": 0, "masks": 0}
    assert row["losses"]["ours"]["main"] == row["losses"]["peer"]["main"] == 5
    assert list(row["milliseconds"]) == list(row["images_per_second"]) == ["ours", "peer"]
    assert list(row["speedup"]) == ["peer"]
    dense.print_table(result)
    table = capsys.readouterr().out
    assert "detection     8x12      inference" in table
    assert "compilation 12.5 s; temporary memory 3 MiB" in table
    assert "losses, peer: main 5, auxiliary 2" in table


def test_ours_is_measured_alone_where_packages_are_missing(sides, monkeypatch, capsys):
    monkeypatch.setattr(dense, "missing_packages", lambda task: ("timm",))
    result = dense.run(tasks=("detection",), size=(8, 12), rounds=1)
    assert [list(row["milliseconds"]) for row in result["rows"]] == [["ours"], ["ours"]]
    assert all(row["speedup"] == row["differences"] == {} for row in result["rows"])
    dense.print_table(result)
    words = "detection is compared with no peer: pip install torch torchvision timm"
    assert words in capsys.readouterr().out


def test_nothing_is_timed_where_outputs_differ(sides, monkeypatch):
    monkeypatch.setattr(Ours, "outputs", lambda self: {"logits": np.array([0, 1.1]),
                                                       "masks": np.array([0, 2.0])})  # fmt: skip
    with pytest.raises(ValueError, match=r"do not compute the same: .* 0.2 \(logits\), 0 \(masks"):
        dense.run(size=(8, 12))


def test_nothing_is_timed_where_losses_differ(sides, monkeypatch):
    class Other(Ours):
        def calls(self, passed):
            call, plan = super().calls(passed)

            def other():
                call()
                self.losses["main"] = 5.1

            return other, plan

    monkeypatch.setattr(dense, "OURS", dict.fromkeys(dense.TASKS, Other))
    with pytest.raises(ValueError, match=r"losses of segmentation are .*'main': 5.1"):
        dense.run(tasks=("segmentation",), size=(8, 12))


def test_few_objects_are_told(sides, monkeypatch, capsys):
    monkeypatch.setattr(Side, "objects", 3)
    dense.run(tasks=("detection",), passes=("inference",), size=(8, 12), rounds=1)
    assert "peer finds 3 objects, ours computes 100" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tasks", "passes"])
def test_words_that_are_not_known_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}=\['pose'\] are not known; allowed are "):
        dense.run(**{name: ("pose",)})


def test_every_task_has_two_sides():
    assert dense.TASKS == tuple(OURS) == tuple(dense.THEIRS)
