# SPDX-License-Identifier: Apache-2.0
"""One run per directory: who holds it is refused nothing, who is dead holds nothing."""

import dataclasses
import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from mambaout_jax.runtime import lock as lock_file
from mambaout_jax.runtime.lock import DirectoryLock, Owner


@pytest.fixture(autouse=True)
def no_settling(monkeypatch):
    monkeypatch.setattr(lock_file, "_SETTLING_SECONDS", 0)
    monkeypatch.setattr(lock_file, "_WATCH_SECONDS", 0)


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def leave(directory, age=0.0, **changes):
    """A lock file as another owner leaves it, renewed `age` seconds ago."""
    directory.mkdir(exist_ok=True)
    path = directory / "run.lock"
    owner = dataclasses.replace(Owner.here(), token="other", **changes)
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    os.utime(path, (time.time() - age, time.time() - age))
    return owner


def test_a_lock_is_a_file_that_goes_when_it_is_released(tmp_path):
    lock = DirectoryLock(tmp_path / "new" / "run")
    lock.check()
    assert not (tmp_path / "new").exists()
    lock.acquire()
    content = json.loads((tmp_path / "new" / "run" / "run.lock").read_text())
    assert (content["pid"], content["host"]) == (os.getpid(), socket.gethostname())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", content["since"])
    lock.release()
    assert list((tmp_path / "new" / "run").iterdir()) == []
    DirectoryLock(tmp_path / "new" / "run").check()


def test_a_held_directory_is_refused_in_a_sentence(tmp_path):
    held = DirectoryLock(tmp_path)
    held.acquire()
    since = json.loads((tmp_path / "run.lock").read_text())["since"]
    before, began = (tmp_path / "run.lock").read_bytes(), time.monotonic()
    for attempt in (DirectoryLock(tmp_path).check, DirectoryLock(tmp_path).acquire):
        with pytest.raises(RuntimeError) as error:
            attempt()
        assert str(error.value) == (
            f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since "
            f"{since}: wait until that run has ended, stop it, or train into another directory"
        )
    assert time.monotonic() - began < 1
    assert (tmp_path / "run.lock").read_bytes() == before
    held.release()
    DirectoryLock(tmp_path).check()


def test_a_dead_process_holds_nothing_on_its_own_host(tmp_path, ended):
    leave(tmp_path, pid=ended)
    lock = DirectoryLock(tmp_path)
    lock.check()
    lock.acquire()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_process_number_that_was_given_away_again_is_not_believed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        leave(tmp_path, pid=process.pid)  # alive, but it did not begin when this process did
        DirectoryLock(tmp_path).check()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leave(tmp_path, pid=process.pid, started=lock_file._started(process.pid))
    with pytest.raises(RuntimeError, match=f"in use by process {process.pid} on"):
        DirectoryLock(tmp_path).check()
    process.send_signal(signal.SIGKILL)
    while lock_file._started(process.pid) != "ended":
        time.sleep(0.001)
    DirectoryLock(tmp_path).check()
    process.wait()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"space": "another boot"}])
def test_an_owner_out_of_sight_is_believed_while_it_renews(tmp_path, ended, changes):
    leave(tmp_path, age=30, pid=ended, **changes)
    with pytest.raises(RuntimeError) as error:
        DirectoryLock(tmp_path).check()
    host = changes.get("host", socket.gethostname())
    assert f"in use by process {ended} on {host}, since" in str(error.value)
    words = r"It gave a sign of life 3\d s ago; .* run the command again once that is 120 s ago"
    assert re.search(words, str(error.value))
    leave(tmp_path, age=121, pid=ended, **changes)
    DirectoryLock(tmp_path).check()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"pid": 1}', b"7"])
def test_a_lock_file_that_cannot_be_read_counts_by_its_age(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="in use by a run whose lock file cannot be read: wait"):
        DirectoryLock(tmp_path).check()
    os.utime(path, (time.time() - 121,) * 2)
    DirectoryLock(tmp_path).acquire()


def test_a_lock_that_is_no_file_is_respected_and_one_that_has_just_gone_is_not(
    tmp_path, monkeypatch
):
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(RuntimeError, match="in use by a run whose lock file cannot be read: wait"):
        DirectoryLock(tmp_path).check()
    (tmp_path / "run.lock").rmdir()
    stale_handle = OSError(errno.ESTALE, "Stale file handle")
    monkeypatch.setattr(Path, "open", mock.Mock(side_effect=stale_handle))  # as NFS 4 says it
    DirectoryLock(tmp_path).check()


@pytest.mark.parametrize("content", [b"", None])
def test_a_lock_file_that_only_looked_old_is_not_taken(tmp_path, content, monkeypatch):
    # NFS 3 creates a file with times that mean nothing, sets them, and then gets what is written.
    owner = leave(tmp_path, host="elsewhere")
    path = tmp_path / "run.lock"
    if content is not None:
        path.write_bytes(content)
    os.utime(path, (0, 0))

    def proceed(seconds):
        assert seconds == 30
        leave(tmp_path, host="elsewhere")

    monkeypatch.setattr(lock_file, "_WATCH_SECONDS", 30)
    monkeypatch.setattr(lock_file.time, "sleep", proceed)
    with pytest.raises(RuntimeError, match="in use by process"):
        DirectoryLock(tmp_path).acquire()
    assert json.loads(path.read_text())["host"] == owner.host == "elsewhere"


def test_the_owner_renews_the_lock_and_says_when_it_has_lost_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock_file, "RENEWAL_SECONDS", 0.01)
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / "run.lock", (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / "run.lock").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - (tmp_path / "run.lock").stat().st_mtime < 10
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        leave(tmp_path)
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == [
        f"another run has taken {tmp_path / 'run.lock'}, where this one still writes"
    ]
    lock.release()
    assert json.loads((tmp_path / "run.lock").read_text())["token"] == "other"


def test_one_whose_new_lock_was_removed_as_stale_gives_way(tmp_path, ended, monkeypatch):
    # Another run has found the same stale lock, and removed ours in its place.
    leave(tmp_path, pid=ended)
    monkeypatch.setattr(lock_file.time, "sleep", lambda _: leave(tmp_path))
    with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"):
        DirectoryLock(tmp_path).acquire()
    assert json.loads((tmp_path / "run.lock").read_text())["token"] == "other"
