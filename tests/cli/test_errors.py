# SPDX-License-Identifier: Apache-2.0
"""Mistakes on the command line: exit codes, one line each, and the argument that was meant."""

import json
import os
import re
import subprocess
import sys

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.cli import models
from mambaout_jax.cli.errors import report
from mambaout_jax.cli.main import main
from mambaout_jax.models import find_variant


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


def fail(error):
    """A verb that ends with an exception."""

    def run(arguments, overrides):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda *_: {}["key"], "KeyError: 'key'"),
        (lambda *_: 1 // 0, "ZeroDivisionError: "),
        (lambda *_: None.name, "AttributeError: 'NoneType' object has no attribute 'name'"),
        (lambda *_: [*5], "TypeError: "),
        (lambda *_: int("x"), "ValueError: invalid literal for int() with base 10: 'x'"),
        (lambda *_: re.compile("("), "error: missing ), unterminated subpattern at position 0"),
        (lambda *_: compile("(", "x", "exec"), "SyntaxError: "),
        (lambda *_: json.loads("{"), "JSONDecodeError: "),
        (fail(AssertionError("two\nlines")), "AssertionError: two lines"),
        (fail(RecursionError("deep")), "RecursionError: deep"),
    ],
)
def test_what_was_not_foreseen_is_a_fault_of_the_program(monkeypatch, capsys, run, words):
    monkeypatch.setattr(models, "run", run)
    line = error_line(capsys, "models", code=70)
    assert line.startswith(f"error: this is a fault of mambaout, not of your command: {words}")
    assert "; MAMBAOUT_TRACEBACK=1 before the same command shows where it arose" in line


def test_what_this_package_raises_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(models, "run", lambda *_: find_variant("mambaout_mikro"))
    assert "did you mean mambaout_micro" in error_line(capsys, "models", code=2)


def test_what_another_process_of_it_raised_explains_itself(monkeypatch, capsys):
    error = ValueError("the archive is torn")
    error.__cause__ = type("_RemoteTraceback", (Exception,), {})()
    monkeypatch.setattr(models, "run", fail(error))
    assert error_line(capsys, "models", code=2) == "error: the archive is torn\n"


def test_too_little_memory_is_told(monkeypatch, capsys):
    monkeypatch.setattr(models, "run", fail(MemoryError()))
    assert "there is not enough memory; try smaller" in error_line(capsys, "models", code=1)


def test_interruption_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(models, "run", fail(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_traceback_of_a_fault_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("MAMBAOUT_TRACEBACK", "1")
    monkeypatch.setattr(models, "run", fail(KeyError("key")))
    with pytest.raises(KeyError):
        main(["models"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("models | true", 141, ""),
        ("--help | true", 0, ""),
        ("models > /dev/full", 1, "error: standard output cannot be written to: No space left on "
         "device\n"),
        ("models 2>&- >&-", 0, ""),
        ("train --config none.py 2>&-", 2, ""),
        ("train --config none.py 2>/dev/full", 2, ""),
    ],
)  # fmt: skip
def test_listing_ends_quietly_where_nobody_reads(command, code, error, tmp_path):
    script = f'set -o pipefail; "{sys.executable}" -m mambaout_jax {command}'
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (code, error)


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
