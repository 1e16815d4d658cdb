# SPDX-License-Identifier: Apache-2.0
"""`mambaout analyse`: which arguments each picture needs, and where it goes."""

from pathlib import Path

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.analysis import diagram
from mambaout_jax.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curves"], "curves takes at least one WORKDIR, and got 0"),
        (["blocks", "runs/a"], "blocks takes no WORKDIR, and got 1"),
    ],
)
def test_questions_take_the_arguments_that_they_need(capsys, arguments, words):
    assert words in usage_error(capsys, "analyse", *arguments)


def test_picture_is_named_after_the_question_by_default(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(diagram, "draw_blocks", drawn.append)
    assert main(["analyse", "blocks"]) == 0
    assert drawn == [Path("blocks.png")]
    assert capsys.readouterr().out == "blocks.png\n"


def test_picture_of_somebody_else_is_not_replaced(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagram, "draw_blocks", lambda path: path.write_text("new"))
    Path("blocks.png").write_text("old")
    assert "blocks.png exists" in error_line(capsys, "analyse", "blocks")
    assert Path("blocks.png").read_text() == "old"
    assert main(["analyse", "blocks", "--force"]) == 0
    assert Path("blocks.png").read_text() == "new"
