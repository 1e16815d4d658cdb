# SPDX-License-Identifier: Apache-2.0
"""--distributed: what is handed to JAX, what a wrong value says, and how processes end."""

import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support import tiny_run
from support.command_line import error_line
from support.places import ROOT

from mambaout_jax.cli import distributed
from mambaout_jax.cli.distributed import (
    has_joined,
    is_first_process,
    join_processes,
    of_a_lost_process,
)
from mambaout_jax.cli.errors import report
from mambaout_jax.runtime.checkpoint import SaveError

TINY = tiny_run.__file__


@pytest.mark.parametrize(
    ("cluster", "calls"),
    [(None, []), ("", [()]), ("host:1234,8,3", [("host:1234", 8, 3)])],
)
def test_join_processes_initialises_jax(monkeypatch, cluster, calls):
    seen = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *arguments, **options: seen.append((arguments, options)),
    )
    join_processes(cluster)
    # Below the 90 s in which a run is to be over whose process has vanished.
    assert seen == [(arguments, {"heartbeat_timeout_seconds": 60}) for arguments in calls]
    assert not has_joined()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed:\n  Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout"), True),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (RuntimeError("the first process of this run stops, and says why"), False),
        (FileNotFoundError("no file Gloo"), False),
    ],
    ids=str,
)
def test_an_error_that_means_a_lost_process_is_told_as_one(monkeypatch, capsys, error, lost):
    assert of_a_lost_process(error) is None  # a process that runs alone has none to lose
    monkeypatch.setattr(distributed, "_witness", object())
    text = of_a_lost_process(error)
    assert (text is not None) is lost
    if text is not None:
        words = " ".join(str(error).split())
        assert text == (
            f"process 0 (of 0 to 0) has lost another one ({words}); the output of the one that "
            "ended first says why. Start the same command on all of them again: a training resumes "
            "at its last checkpoint"
        )
        assert report(error) == 1
        assert capsys.readouterr().err == f"error: {text}\n"


def test_a_save_that_fails_because_of_a_lost_process_says_so(monkeypatch):
    monkeypatch.setattr(distributed, "_witness", object())
    error = SaveError("a checkpoint could not be written; check the free space")
    error.__cause__ = TimeoutError("Timeout waiting at barrier 'save'")
    told = "process 0 (of 0 to 0) has lost another one (Timeout waiting at barrier 'save'); "
    assert str(of_a_lost_process(error)).startswith(told)
    error.__cause__ = OSError("No space left on device")
    assert of_a_lost_process(error) is None


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "it's $HOME\n"),
        ("os.abort()", -signal.SIGABRT, "it's $HOME\n"),
        ("witness.dismiss()", 0, ""),
        ("distributed._witness = witness; threading.Thread(target=time.sleep, args=(60,)).start();"
         "distributed.leave(3)", 3, ""),
    ],
)  # fmt: skip
def test_a_witness_tells_of_an_end_that_nobody_else_can_tell_of(end, code, said):
    source = (
        "import os, signal, threading, time; from mambaout_jax.cli import distributed;"
        "witness = distributed._Witness('not this'); witness.will_say(\"it's $HOME\");" + end
    )
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "", said)


@pytest.mark.parametrize(("index", "first"), [(0, True), (1, False)])
def test_only_process_0_is_first(monkeypatch, index, first):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert is_first_process() is first


@pytest.mark.parametrize("value", ["localhost", "localhost:1,2", "localhost:1,two,0"])
def test_malformed_distributed_is_one_line(capsys, value):
    words = "give it HOST:PORT,COUNT,INDEX: the address of process 0"
    assert words in error_line(capsys, "train", "--config", TINY, f"--distributed={value}")


def test_distributed_without_a_cluster_is_one_line():
    command = [sys.executable, "-m", "mambaout_jax", "train", "--config", TINY, "--distributed"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(TINY).parent.parent
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: --distributed= finds no other process (")
    assert result.stderr.count("\n") == 1
