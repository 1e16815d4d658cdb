# SPDX-License-Identifier: Apache-2.0
"""Mistakes on the command line: exit codes, one line each, and the argument that was meant."""

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.cli import models
from mambaout_jax.cli.errors import report
from mambaout_jax.cli.main import main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a"), 2),
        (TypeError("a"), 2),
        (FileNotFoundError("a"), 2),
        (NotADirectoryError("a"), 2),
        (FileExistsError("a"), 2),
        (IsADirectoryError("a"), 2),
        (PermissionError("a"), 1),
        (RuntimeError("a"), 1),
        (FloatingPointError("a"), 1),
        (ModuleNotFoundError("a"), 1),
    ],
    ids=repr,
)
def test_report_tells_wrong_usage_from_failure(error, code, capsys):
    assert report(error) == code
    assert capsys.readouterr().err == "error: a\n"


def test_main_reports_the_error_of_a_verb(monkeypatch, capsys):
    def run(arguments, overrides):
        raise OSError("the disk is full")

    monkeypatch.setattr(models, "run", run)
    assert error_line(capsys, "models", code=1) == "error: the disk is full\n"


def test_main_does_not_hide_bugs(monkeypatch):
    monkeypatch.setattr(models, "run", lambda arguments, overrides: {}["key"])
    with pytest.raises(KeyError):
        main(["models"])


def test_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("MAMBAOUT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"there is no config file none\.py"):
        main(["train", "--config", "none.py"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--config=x", "--workdri", "x"], "--workdri; did you mean --workdir?"),
        (["train", "--config=x", "--dryrun"], "--dryrun; did you mean --dry-run?"),
        (["evaluate", "--workdir=x", "--dry-run"], "there is no argument --dry-run\n"),
        (["bench", "conv", "--no-compild"], "--no-compild; did you mean --no-compiled?"),
        (["models", "*", "resnet"], "there is no argument resnet\n"),
        (["models", "--config.seed=1"], "there is no argument --config.seed=1\n"),
    ],
)
def test_unknown_argument_is_named(capsys, arguments, words):
    assert words in usage_error(capsys, *arguments)
