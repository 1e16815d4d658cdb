# SPDX-License-Identifier: Apache-2.0
"""Files that commands write: each command refuses what cannot be written, before its work."""

import pytest
from support import tiny_run
from support.command_line import error_line, usage_error

COMMANDS = {  # what stands before the file, and its suffix; the work itself would fail, or be long
    "convert": (["convert", "no/such/weights"], ".safetensors"),
    "analyse": (["analyse", "curves", "no/such/run", "--out"], ".png"),
    "bench": (["bench", "throughput", "--out"], ".json"),
    "train": (["train", "--config", tiny_run.__file__, "--show-batch"], ".png"),
}


@pytest.fixture(params=COMMANDS)
def command(request):
    return COMMANDS[request.param]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/a{}", "cannot be written: there is no folder"),
        ("file/a{}", "is not a folder"),
        ("there{}", "exists; name another file, or replace it with --force"),
        (".", "is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_written_is_refused_first(capsys, tmp_path, command, name, words):
    before, suffix = command
    (tmp_path / "file").write_text("mine")
    (tmp_path / f"there{suffix}").write_text("mine")
    path = tmp_path / name.format(suffix)
    assert words in error_line(capsys, *before, str(path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", f"there{suffix}"]
    assert (tmp_path / f"there{suffix}").read_text() == "mine"


def test_other_suffixes_are_refused(capsys, tmp_path, command):
    before, suffix = command
    path = tmp_path / "a.txt"
    words = f"{path} is to be a {suffix} file; call it {path.with_suffix(suffix)}"
    assert words in usage_error(capsys, *before, str(path))


def test_folder_that_may_not_be_written_to_is_refused(capsys, tmp_path, command, monkeypatch):
    before, suffix = command
    monkeypatch.setattr("os.access", lambda *_: False)
    words = f"nothing can be made in {tmp_path}"
    assert words in error_line(capsys, *before, str(tmp_path / f"a{suffix}"), code=1)
