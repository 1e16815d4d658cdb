# SPDX-License-Identifier: Apache-2.0
"""`mambaout bench`: arguments are those of the benchmarks, and mistakes come before measuring."""

import importlib
import inspect

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.benchmarks import conv, scan
from mambaout_jax.cli.main import build_parser

QUESTIONS = ("conv", "scan", "throughput", "input")


@pytest.mark.parametrize("question", QUESTIONS)
def test_options_are_parameters_of_the_benchmark(question):
    benchmark = importlib.import_module(f"mambaout_jax.benchmarks.{question}")
    arguments = build_parser().parse_args(["bench", question])
    names = {action.dest for action, questions in arguments.options if question in questions}
    assert "rounds" in names
    assert names | {"keep"} <= inspect.signature(benchmark.run).parameters.keys()


def test_bench_fails_before_it_measures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(conv, "run", None)
    monkeypatch.setattr(scan, "run", None)
    file = tmp_path / "file"
    file.write_text("")
    for question in ("conv", "scan"):
        command = ["bench", question, "--out"]
        for wrong in (tmp_path / "a.csv", tmp_path):
            assert "must be a file, FILE.json" in usage_error(capsys, *command, str(wrong))
        assert "File exists" in error_line(capsys, *command, str(file / "a.json"), code=1)
    monkeypatch.setattr("os.access", lambda *_: False)
    error = error_line(capsys, "bench", "conv", "--out", str(tmp_path / "a.json"), code=1)
    assert f"the folder {tmp_path} is not writable" in error
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conv", "--widths", "96", "--state-size=1"], "conv takes no --widths; scan does"),
        (["scan", "--no-compiled"], "scan takes no --compiled; throughput does"),
        (["input", "--device=cpu"], "input takes no --device: it measures the host"),
        (["input", "--dtype=float32"], "input takes no --dtype: it measures the host"),
        (["scan", "--device=npu"], "invalid choice: 'npu'"),
    ],
)
def test_bench_takes_no_arguments_of_another_question(capsys, arguments, words):
    assert words in usage_error(capsys, "bench", *arguments)
