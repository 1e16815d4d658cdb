# SPDX-License-Identifier: Apache-2.0
"""`mambaout evaluate`: which of its three evaluations is meant, and which process prints."""

import jax
import pytest
from support import tiny_run
from support.command_line import error_line, usage_error

from mambaout_jax.cli import evaluate as verb
from mambaout_jax.cli.main import main
from mambaout_jax.evaluation import evaluator

TINY = tiny_run.__file__


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workdir=run"], "_evaluate_run"),
        (["--workdir=run", "--data=images"], "_evaluate_images"),
        (["--workdir=run", "--figures=pictures"], "_evaluate_images"),
        (["--weights=a.pth"], "_evaluate_images"),
        (["--weights=a.pth", "--data=images"], "_evaluate_images"),
        (["--workdir=run", "--suite=sets"], "_evaluate_suites"),
        (["--weights=a.pth", "--suite=sets", "--json=a.json"], "_evaluate_suites"),
    ],
)
def test_arguments_choose_the_evaluation(monkeypatch, arguments, expected):
    chosen = []
    for name in ("_evaluate_run", "_evaluate_images", "_evaluate_suites"):
        monkeypatch.setattr(verb, name, lambda *_, name=name: chosen.append(name))
    assert main(["evaluate", *arguments]) == 0
    assert chosen == [expected]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--suites=val"],
        ["--json=a.json"],
        ["--data=images", "--json=a.json"],
        ["--suite=sets", "--data=images"],
        ["--suite=sets", "--figures=pictures"],
    ],
)
def test_arguments_of_two_evaluations_exclude_each_other(capsys, arguments):
    words = "--suites and --json go with --suite; --data and --figures do not"
    assert words in usage_error(capsys, "evaluate", "--weights=a.pth", *arguments)


def test_evaluate_checks_where_it_writes_before_it_works(monkeypatch, capsys, tmp_path):
    chosen = []
    monkeypatch.setattr(verb, "_evaluate_suites", lambda *_: chosen.append("suites"))
    file = tmp_path / "a.json"
    file.touch()
    command = ["evaluate", "--weights=a.pth", "--suite=sets", f"--json={file}"]
    assert "a.json exists; name another file, or replace it with" in error_line(capsys, *command)
    assert chosen == []
    assert main([*command, "--force"]) == 0
    assert chosen == ["suites"]
    assert "--force goes with" in usage_error(capsys, *command[:-1], "--force")


@pytest.mark.parametrize(("index", "printed"), [(0, "step 3  eval/top1 50\n"), (1, "")])
def test_only_the_first_process_prints(monkeypatch, capsys, index, printed):
    monkeypatch.setattr(evaluator, "evaluate", lambda config, workdir: {"step": 3, "eval/top1": 50})
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert main(["evaluate", "--workdir=run", "--config", TINY]) == 0
    assert capsys.readouterr().out == printed


def test_evaluate_without_a_run_is_one_line(capsys, tmp_path):
    words = "config.json is missing; the folder should be the --workdir of a training run"
    assert words in error_line(capsys, "evaluate", "--workdir", str(tmp_path))


def test_evaluate_without_a_checkpoint_is_one_line(capsys, tmp_path):
    words = f"no checkpoint in {tmp_path / 'checkpoints'}"
    command = ["evaluate", "--workdir", str(tmp_path), "--config", TINY]
    assert words in error_line(capsys, *command)
