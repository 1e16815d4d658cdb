# SPDX-License-Identifier: Apache-2.0
"""Worker processes do not outlive their parent, and their death is one sentence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import ROOT

PROGRAM = """
import multiprocessing, os, signal, sys, time
from support.tiny_run import get_config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets.sources import open_source
from mambaout_jax.data.views.crops import TrainingView

if __name__ == "__main__":
    config = get_config()
    config.data.num_workers = 2
    with train_batches(config, open_source(config.data, "train"), TrainingView(config)) as batches:
        next(batches)
        while len(workers := [x.pid for x in multiprocessing.active_children()]) < 2:
            time.sleep(0.01)  # the second may still be starting
        print(*workers, flush=True)
        if sys.argv[1] == "wait":
            time.sleep(60)
        os.kill(workers[0], signal.SIGKILL)
        try:
            while True:
                next(batches)
        except RuntimeError as error:
            print(error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program, a file as spawned processes need it; it does not outlive the test."""
    path, processes = tmp_path / "program.py", []
    path.write_text(PROGRAM)

    def start(argument):
        command = [sys.executable, str(path), argument]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": paths}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def is_alive(pid):
    """Whether a process runs; one that has ended and only waits to be buried does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state not in "ZX"


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(start):
    process = start("wait")
    workers = list(map(int, process.stdout.readline().split()))
    assert len(workers) == 2
    assert all(map(is_alive, workers))
    process.send_signal(signal.SIGINT)  # for the parent only
    process.kill()
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


@pytest.mark.slow
def test_a_killed_worker_is_one_sentence_and_nothing_else(start):
    out, err = start("kill a worker").communicate(timeout=120)
    assert re.fullmatch(
        r"\d+ \d+\na process that decodes images ended with exit code -9, as when it is killed or "
        r"memory runs out; run the same command again to resume, .*\n",
        out,
    )
    assert err == ""
