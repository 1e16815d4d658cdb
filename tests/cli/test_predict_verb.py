# SPDX-License-Identifier: Apache-2.0
"""`mambaout predict`: what it passes on and how it prints a prediction."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.cli.main import main
from mambaout_jax.evaluation import predict
from mambaout_jax.weights import load

FINDINGS = ({"name": "cat", "probability": 0.8712345678}, {"name": "dog", "probability": 0.05})
PREDICTION = SimpleNamespace(path=Path("a.jpg"), findings=FINDINGS)


@pytest.fixture
def calls(monkeypatch):
    """What the verb passes on, by function."""
    calls = {}

    def recorded(name, result):
        def function(*arguments, skip=None, kind=None):
            calls[name] = arguments if kind is None else (*arguments, kind)
            return result

        return function

    task = SimpleNamespace(draw_predictions=recorded("draw_predictions", None))
    predictor = SimpleNamespace(task=task, kind="classification")
    results = {"make_predictor": predictor, "predict_files": iter([PREDICTION])}
    monkeypatch.setattr(load, "describe_source", recorded("describe_source", "preprocessing"))
    for name, result in results.items():
        monkeypatch.setattr(predict, name, recorded(name, result))
    return calls


def test_predict_passes_its_arguments_on(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["predict", "a.jpg", "b", "--weights=w.pth", "--model=mambaout_tiny"]
    assert main([*command, "--image-size=384", "--top=2", "--grid=g.png"]) == 0
    predictor, *rest = calls.pop("predict_files")
    assert hasattr(predictor, "task")
    assert rest == [["a.jpg", "b"], 2]
    assert calls == {
        "describe_source": ("w.pth", "mambaout_tiny", 384),
        "make_predictor": ("w.pth", "mambaout_tiny", "preprocessing"),
        "draw_predictions": ([PREDICTION], Path("g.png")),
    }


def test_predict_prints_percent(calls, capsys):
    assert main(["predict", "a.jpg", "--weights=w.pth"]) == 0
    assert capsys.readouterr().out == "a.jpg\n   87.1 %  cat\n    5.0 %  dog\n"
    assert calls["predict_files"][2] == 5
    assert "draw_predictions" not in calls


def test_predict_prints_json(calls, capsys):
    assert main(["predict", "a.jpg", "--weights=w.pth", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "a.jpg",
        "classes": [
            {"name": "cat", "probability": 0.871235},
            {"name": "dog", "probability": 0.05},
        ],
    }


@pytest.mark.parametrize("name", ["--top", "--image-size"])
@pytest.mark.parametrize("value", ["0", "-3", "x", "2.5"])
def test_predict_wants_numbers_of_at_least_one(capsys, name, value):
    words = f"argument {name}: {value!r} is not a whole number of at least 1"
    assert words in usage_error(capsys, "predict", "a.jpg", "--weights=w.pth", f"{name}={value}")


def test_predict_refuses_sizes_that_no_memory_holds(capsys):
    command = ("predict", "a.jpg", "--weights=mambaout_femto.in1k", "--image-size=100000")
    assert "image_size=100000 is out of range; it must be from 1 to 8192" in error_line(
        capsys, *command
    )


def test_predict_checks_where_it_draws_before_it_works(calls, tmp_path, capsys):
    grid = tmp_path / "grid.png"
    grid.touch()
    command = ["predict", "a.jpg", "--weights=w.pth", f"--grid={grid}"]
    assert "grid.png exists; name another file, or replace it with --force" in error_line(
        capsys, *command
    )
    assert "there is no folder" in error_line(capsys, *command[:-1], f"--grid={grid}s/grid.png")
    assert calls == {}
    assert main([*command, "--force"]) == 0
    assert "draw_predictions" in calls
    assert "--force goes with --grid" in usage_error(capsys, *command[:-1], "--force")


@pytest.mark.parametrize(
    ("kind", "finding", "line", "key"),
    [
        ("detection", {"box": [1.4, 2.0, 30.6, 40.0], "mask": {"size": [4, 5], "counts": "0"}},
         "   87.1 %  cat  at 1, 2, 31, 40", "objects"),
        ("segmentation", {"share": 0.25, "mask": {"size": [4, 5], "counts": "0"}},
         "   87.1 %  cat  on 25.0 % of the image", "classes"),
    ],
)  # fmt: skip
def test_predict_tells_where_things_are(calls, capsys, monkeypatch, kind, finding, line, key):
    found = SimpleNamespace(
        path=Path("a.jpg"), image=np.zeros((4, 5, 3)), findings=({**FINDINGS[0], **finding},)
    )
    task = SimpleNamespace(task=None, kind=kind)
    monkeypatch.setattr(predict, "make_predictor", lambda *_, **options: task)
    monkeypatch.setattr(predict, "predict_files", lambda *arguments, skip: iter([found]))
    command = ["predict", "a.jpg", "--weights=w.pth", f"--task={kind}"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"a.jpg\n{line}\n"
    assert main([*command, "--json"]) == 0
    rows = [{"name": "cat", "probability": 0.871235, **finding}]
    assert json.loads(capsys.readouterr().out) == {"path": "a.jpg", "size": [4, 5], key: rows}
