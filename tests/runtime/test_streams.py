# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that are closed, full, or no longer read."""

import io
import os
import subprocess
import sys

import pytest

from mambaout_jax.runtime.streams import complain, discard, is_broken, say


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w", encoding="utf-8")  # noqa: SIM115
    yield stream
    discard(stream)
    stream.close()


def test_say_goes_on_where_nobody_reads_and_tells_once(unread, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stdout", unread)
    for _ in range(3):
        say("step 1")
    (warning,) = caplog.records
    assert warning.getMessage() == (
        "standard output cannot be written to (Broken pipe); the work goes on"
    )
    assert not is_broken(sys.stdout)


def test_broken_is_told_before_and_after_printing(unread):
    assert is_broken(unread)
    print("word", end="", file=unread)
    assert is_broken(unread)
    discard(unread)
    assert not is_broken(unread)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_device_is_broken(monkeypatch, caplog):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert not is_broken(stream)
        say("step 1")
        say("step 2")
    assert [record.getMessage() for record in caplog.records] == [
        "standard output cannot be written to (No space left on device); the work goes on"
    ]


def test_stream_without_a_file_is_replaced(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    broken = Broken()
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    say("step 1")
    complain("error")
    assert sys.stdout is not broken
    assert not is_broken(sys.stdout)


def test_complaint_is_printed(capsys):
    complain("error: a")
    assert capsys.readouterr().err == "error: a\n"


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path):
    code = (
        "from mambaout_jax.runtime.streams import open_missing_streams\n"
        "open_missing_streams()\n"
        "import os, sys\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "os.write(1, b'1'); os.write(2, b'2')\n"
        "file.write(str(file.fileno()))\n"
    )
    command = f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, code], timeout=60).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2
