# SPDX-License-Identifier: Apache-2.0
"""Files are replaced whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from mambaout_jax.runtime.files import check_destination, replacing, write_json, write_text


def test_written_text_is_utf8_and_leaves_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "größe\n")
    write_text(tmp_path / "a.txt", "Größe\n")
    assert (tmp_path / "a.txt").read_bytes() == b"Gr\xc3\xb6\xc3\x9fe\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_read_back_as_it_was(tmp_path):
    value = {"a": [1, 2.5, None], "b": "größe"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_a_value_that_is_not_json_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write_json(tmp_path / "a.json", {1, 2})
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with replacing(path) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_full_disk_is_told_with_the_file(tmp_path):
    path = tmp_path / "a.txt"

    def fail():
        with replacing(path), open("/dev/full", "w") as full:
            full.write("new")

    with pytest.raises(OSError, match=rf"No space left on device: '{path}'") as error:
        fail()
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_old_file_until_the_end(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_kill_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    source = (
        "import os, signal, sys\n"
        "from mambaout_jax.runtime.files import replacing, write_text\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", source, str(path)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")  # over what the kill left
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_destination_that_is_free_is_left_alone(tmp_path):
    check_destination(tmp_path / "new.txt")
    assert not list(tmp_path.iterdir())


def test_only_force_replaces_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("nowhere")
    for name in ("a.txt", "link.txt"):
        with pytest.raises(FileExistsError, match=rf"{name} exists; .* --force"):
            check_destination(tmp_path / name)
        check_destination(tmp_path / name, force=True)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("folder", IsADirectoryError, "folder is a folder; name a file in it"),
        ("absent/a.txt", FileNotFoundError, "there is no folder .*absent; make it"),
        ("file/a.txt", NotADirectoryError, "file is not a folder"),
        ("file/b/a.txt", NotADirectoryError, "b is not a folder"),
        ("pipe", OSError, "pipe is not an ordinary file"),
    ],
)
def test_a_destination_that_cannot_be_written(tmp_path, name, error, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=words):
        check_destination(tmp_path / name, force=True)


def test_a_destination_in_a_folder_that_cannot_be_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for anyone but root
    with pytest.raises(PermissionError, match="nothing can be made in"):
        check_destination(tmp_path / "a.txt")
