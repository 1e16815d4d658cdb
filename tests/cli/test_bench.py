# SPDX-License-Identifier: Apache-2.0
"""`mambaout bench`: arguments are those of the benchmarks, and mistakes come before measuring."""

import importlib
import inspect

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.benchmarks import throughput
from mambaout_jax.cli.main import build_parser, main

QUESTIONS = ("conv", "scan", "throughput", "dense", "input")


@pytest.mark.parametrize("question", QUESTIONS)
def test_options_are_parameters_of_the_benchmark(question):
    benchmark = importlib.import_module(f"mambaout_jax.benchmarks.{question}")
    arguments = build_parser().parse_args(["bench", question])
    names = {action.dest for action, questions in arguments.options if question in questions}
    assert "rounds" in names
    assert names | {"keep"} <= inspect.signature(benchmark.run).parameters.keys()


@pytest.mark.parametrize(
    ("question", "suffix"), [("scan", ".csv"), ("scan", ".png"), ("throughput", ".png")]
)
def test_no_table_or_picture_of_somebody_else_is_replaced(
    capsys, tmp_path, monkeypatch, question, suffix
):
    benchmark = importlib.import_module(f"mambaout_jax.benchmarks.{question}")
    monkeypatch.setattr(benchmark, "run", None)
    (tmp_path / f"a{suffix}").write_text("mine")
    error = error_line(capsys, "bench", question, "--out", str(tmp_path / "a.json"))
    assert f"a{suffix} exists; name another file, or replace it with --force" in error


def test_force_is_for_a_file(capsys):
    assert "--force goes with --out" in usage_error(capsys, "bench", "conv", "--force")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conv", "--widths", "96", "--state-size=1"], "conv takes no --widths; scan does"),
        (["scan", "--no-compiled"], "scan takes no --compiled; throughput does"),
        (["input", "--device=cpu"], "input takes no --device: it measures the host"),
        (["input", "--dtype=float32"], "input takes no --dtype: it measures the host"),
        (["scan", "--device=npu"], "invalid choice: 'npu'"),
        (["conv", "--official=vim=.."], "conv takes no --official; throughput does"),
        (["throughput", "--official", "vim"], "'vim' is not FAMILY=DIR, such as vim=../Vim"),
        (["throughput", "--passes=forward"], "invalid choice: 'forward'"),
        (["conv", "--batch-size=1"], "conv takes no --batch-size; throughput and dense do"),
        (["dense", "--models", "x"], "dense takes no --models; throughput does"),
        (["dense", "--tasks=pose"], "invalid choice: 'pose'"),
    ],
)
def test_bench_takes_no_arguments_of_another_question(capsys, arguments, words):
    assert words in usage_error(capsys, "bench", *arguments)


@pytest.mark.parametrize(
    ("question", "option"),
    [
        *((question, "--rounds") for question in QUESTIONS),
        *(("scan", option) for option in ("--widths", "--lengths", "--state-size")),
        *(("scan", option) for option in ("--memory-limit", "--budget-seconds")),
        *(("throughput", option) for option in ("--batch-size", "--image-size")),
        ("dense", "--batch-size"),
        *(("input", option) for option in ("--images", "--images-per-second")),
    ],
)
def test_bench_refuses_numbers_that_measure_nothing(capsys, question, option):
    fraction = option in ("--budget-seconds", "--images-per-second")
    kind = "finite number above 0" if fraction else "whole number of at least 1"
    for value in ("0", "-5", "nan", "inf", "many", "", "-0.5" if fraction else "1.5"):
        error = usage_error(capsys, "bench", question, f"{option}={value}")
        assert f"argument {option}: {value!r} is not a {kind}" in error


def test_bench_refuses_one_wrong_number_among_several(capsys):
    error = usage_error(capsys, "bench", "scan", "--lengths", "49", "-5")
    assert "argument --lengths: '-5' is not a whole number of at least 1" in error


def test_checkouts_and_scans_reach_the_benchmark(capsys, monkeypatch):
    asked = {}
    monkeypatch.setattr(throughput, "run", lambda **options: asked.update(options) or {"rows": []})
    monkeypatch.setattr(throughput, "print_table", lambda result: None)
    command = ["bench", "throughput", "--models", "vim_tiny", "--official", "vim=a", "vmamba=b=c"]
    assert main([*command, "--official", "vim=d", "--scans", "associative", "--no-timm"]) == 0
    assert asked == {
        "models": ["vim_tiny"],
        "official": [("vim", "a"), ("vmamba", "b=c"), ("vim", "d")],
        "scans": ["associative"],
        "timm": False,
    }
