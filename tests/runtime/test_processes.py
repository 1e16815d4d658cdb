# SPDX-License-Identifier: Apache-2.0
"""Runs as processes of their own: killed, stopped, and two that train as one."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from jax.experimental import multihost_utils
from support.places import ROOT
from support.runs import (
    assert_close,
    checkpoints,
    final_state,
    flip_a_byte_of_the_data,
    signal_after,
    timeless_metrics,
)

from mambaout_jax.runtime.processes import in_first_process

pytestmark = pytest.mark.long

COMMAND = [
    *(sys.executable, "-m", "mambaout_jax", "train", "--config", "tests/support/tiny_run.py"),
    *("--config.schedule.total_steps=300", "--config.checkpoint.every_steps=40"),
]


@pytest.fixture(scope="module")
def start():
    """Starts the command as a process of its own, which does not outlive the tests."""
    processes = []

    def start(workdir, *arguments, devices=2):
        process = subprocess.Popen(
            [*COMMAND, "--workdir", str(workdir), *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("index", "failed"), [(0, True), (1, True), (0, False), (1, False)])
def test_what_fails_in_the_first_process_fails_in_all(monkeypatch, index, failed):
    said, ran = [], []
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda x: said.append(bool(x)) or failed
    )

    def action():
        ran.append(index)
        if failed:
            raise OSError("the disk is full")

    if failed:
        words = "the disk is full" if index == 0 else "the first process of this run stops"
        with pytest.raises((OSError, RuntimeError)[index], match=words):
            in_first_process(action)
    else:
        in_first_process(action)
    assert ran == [0][index:]
    assert said == [failed and index == 0]  # every process takes part


def finish(process, code=0):
    """Waits for a process and returns its standard output and error."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """A longer run in a process of its own, and the last line it printed."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    out, _ = finish(start(workdir))
    return workdir, out.strip().split("\n")[-1].split("  (")[0]


@pytest.mark.newest
@pytest.mark.slow
def test_killed_and_damaged_run_ends_as_if_nothing_had_happened(start, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    signal_after(process, workdir, 40, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    process = start(workdir)
    signal_after(process, workdir, 160, signal.SIGKILL)
    out, _ = finish(process, -signal.SIGKILL)
    assert "resuming from" in out

    newest = checkpoints(workdir)[-1]
    assert 160 <= newest < 300
    flip_a_byte_of_the_data(workdir / "checkpoints" / str(newest))
    out, err = finish(start(workdir))
    assert re.search(rf"WARNING: checkpoint {newest} in .* cannot be read", err)
    assert f"resuming from {workdir / 'checkpoints' / str(newest - 40)}\n" in out
    assert out.strip().split("\n")[-1].split("  (")[0] == uninterrupted[1]
    assert final_state(workdir) == final_state(uninterrupted[0])
    assert timeless_metrics(workdir) == timeless_metrics(uninterrupted[0])


@pytest.mark.slow
def test_twenty_kills_at_any_moment_change_nothing(start, uninterrupted, tmp_path):
    workdir, moments = tmp_path / "run", random.Random(0)
    for kill in range(1, 21):
        process = start(workdir, "--config.checkpoint.every_steps=12")
        signal_after(process, workdir, 12 * kill, signal.SIGCONT)  # which does nothing
        time.sleep(0.3 * moments.random())  # of updates, evaluations, saves
        process.kill()
        finish(process, -signal.SIGKILL)
    out, _ = finish(start(workdir, "--config.checkpoint.every_steps=12"))
    assert out.strip().split("\n")[-1].split("  (")[0] == uninterrupted[1]
    assert final_state(workdir) == final_state(uninterrupted[0])
    assert timeless_metrics(workdir) == timeless_metrics(uninterrupted[0])


@pytest.mark.slow
def test_a_second_start_is_refused_until_the_first_is_gone_and_harms_nothing(start, tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir)
    signal_after(first, workdir, 40, signal.SIGCONT)  # which does nothing
    before = sorted(path.name for path in workdir.iterdir())
    out, err = finish(start(workdir, "--config.seed=1"), 1)
    assert out == ""
    assert re.fullmatch(
        rf"error: {workdir} is in use by process {first.pid} on \S+, since .*: wait until that run "
        r"has ended, stop it, or train into another directory\n",
        err,
    )
    assert sorted(path.name for path in workdir.iterdir()) == before
    first.kill()
    finish(first, -signal.SIGKILL)
    assert (workdir / "run.lock").exists()
    out, err = finish(start(workdir, "--config.schedule.total_steps=81"))
    assert "resuming from" in out
    assert not (workdir / "run.lock").exists()


@pytest.mark.slow
def test_a_folder_that_turns_unwritable_ends_the_run_within_seconds(start, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    signal_after(process, workdir, 40, signal.SIGSTOP)
    (workdir / "checkpoints").rename(workdir / "elsewhere")
    (workdir / "checkpoints").write_text("x")
    process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    _, err = finish(process, 1)
    assert time.monotonic() - began < 60  # Orbax alone would wait for 300 s
    (line,) = err.splitlines()
    assert line.startswith(
        f"error: a checkpoint could not be written to {workdir / 'checkpoints'}: "
    )
    assert not (workdir / "run.lock").exists()


@pytest.mark.newest
@pytest.mark.slow
def test_sigterm_saves_and_exits_with_code_75(start, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    signal_after(process, workdir, 40, signal.SIGTERM)
    _, err = finish(process, 75)
    newest = checkpoints(workdir)[-1]
    assert 40 < newest < 300
    assert err.strip().split("\n")[-1] == (
        f"stopped after step {newest} as asked; the state is in "
        f"{workdir / 'checkpoints' / str(newest)}: run the same command again to continue"
    )
    finish(start(workdir))
    assert final_state(workdir) == final_state(uninterrupted[0])
    assert timeless_metrics(workdir) == timeless_metrics(uninterrupted[0])


@pytest.mark.newest
@pytest.mark.slow
def test_two_processes_train_as_one_does_and_stop_together(start, tmp_path):
    settings = [
        "--config.schedule.total_steps=120",
        "--config.optimizer.learning_rate=1e-3",  # higher ones let rounding grow
    ]

    def start_both():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        return [
            start(workdir, "--distributed", f"{address},2,{index}", *settings, devices=1)
            for index in range(2)
        ]

    workdir = tmp_path / "run"
    processes = start_both()
    signal_after(processes[0], workdir, 40, signal.SIGTERM)  # one of the two only
    errors = [finish(process, 75)[1] for process in processes]
    newest = checkpoints(workdir)[-1]
    assert 40 < newest < 120
    assert all(f"stopped after step {newest} as asked" in error for error in errors)

    outs = [finish(process)[0] for process in start_both()]
    assert [bool(re.search(r"^step \d+/120 ", out, re.MULTILINE)) for out in outs] == [True, False]
    single = tmp_path / "single"
    finish(start(single, *settings))
    for line, other in zip(timeless_metrics(workdir), timeless_metrics(single), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert_close(workdir, single, atol=1e-5)
