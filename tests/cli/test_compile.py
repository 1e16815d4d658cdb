# SPDX-License-Identifier: Apache-2.0
"""`mambaout compile`: what it refuses before anything is compiled, and what it prints."""

import pytest

from mambaout_jax.aot import report
from mambaout_jax.cli.main import main

CONFIG = "experiments/quickstart.py"


@pytest.fixture
def compiled(monkeypatch):
    calls = []

    def compile_for(config, target, **options):
        calls.append((config.batch_size, target, options))
        return {}

    monkeypatch.setattr(report, "compile_for", compile_for)
    monkeypatch.setattr(report, "as_text", lambda result: "the table")
    monkeypatch.setattr(report, "write", lambda result, out: [out.with_suffix(".json")])
    return calls


def test_the_table_is_printed_and_files_are_named(compiled, capsys, tmp_path):
    arguments = ["--target", "here", "--mixers", "conv,conv+ssm", "--out", str(tmp_path / "x")]
    assert main(["compile", "--config", CONFIG, *arguments, "--config.batch_size=32"]) == 0
    assert compiled == [(32, "here", {"mixers": ["conv", "conv+ssm"], "search": False})]
    assert capsys.readouterr().out == f"the table\n{tmp_path / 'x.json'}\n"


def test_files_are_not_replaced_unasked(compiled, capsys, tmp_path):
    (tmp_path / "x.png").touch()
    arguments = ["compile", "--config", CONFIG, "--target", "here", "--out", str(tmp_path / "x")]
    assert main(arguments) == 2
    assert "x.png" in capsys.readouterr().err
    assert not compiled
    assert main([*arguments, "--force"]) == 0


def test_an_unknown_machine_is_an_error(capsys):
    assert main(["compile", "--config", CONFIG, "--target", "v4-8"]) == 2
    assert "target='v4-8' is not known; allowed are v5e-8" in capsys.readouterr().err


def test_force_needs_files():
    with pytest.raises(SystemExit, match="2"):
        main(["compile", "--config", CONFIG, "--target", "here", "--force"])
