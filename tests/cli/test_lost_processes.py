# SPDX-License-Identifier: Apache-2.0
"""A process of several dies, is stopped, or fails: the others end soon, and say why."""

import re
import signal
import time

import pytest
from support import tiny_run
from support.runs import signal_after
from support.together import together

from mambaout_jax.runtime.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

AGAIN = (
    "the output of the one that ended first says why. Start the same command on all of them again: "
    "a training resumes at its last checkpoint\n"
)
# A verb in which the processes wait for each other without end, or process 1 fails.
PROGRAM = """
import sys
import numpy as np
from mambaout_jax.cli import distributed, models
from mambaout_jax.cli.main import main
distributed.HEARTBEAT_SECONDS = 10
address, count, index, fails = sys.argv[1:]
def run(arguments, overrides):
    distributed.join_processes(f"{address},{count},{index}")
    from jax.experimental.multihost_utils import broadcast_one_to_all
    for number in range(10**9):
        broadcast_one_to_all(np.zeros(1))
        if number == 20:
            print("here", flush=True)
            if fails == index:
                raise OSError("the disk is full")
models.run = run
sys.exit(main(["models"]))
"""


def loop(fails=""):
    return lambda *place: ["-c", PROGRAM, *map(str, place), fails]


def said(process, seconds):
    """What a process says on standard error until its end, for which it has a time."""
    began = time.monotonic()
    _, err = process.communicate(timeout=seconds + 30)
    assert time.monotonic() - began < seconds
    return err


def wait_for(processes):
    for process in processes:
        while not process.stdout.readline().startswith("here"):
            assert process.poll() is None, process.communicate()


def test_a_killed_process_is_missed_at_once():
    with together(loop(), 2, devices=1) as processes:
        wait_for(processes)
        processes[1].kill()
        err = said(processes[0], seconds=5)
        assert processes[0].returncode == 1
        assert re.fullmatch(
            rf"error: process 0 \(of 0 to 1\) has lost another one \([^\n]*\); {AGAIN}", err
        )
        assert said(processes[1], seconds=5) == (
            "error: process 1 (of 0 to 1) was killed, or JAX ended it because another one is gone, "
            f"and says so above; {AGAIN}"
        )


def test_all_others_end_where_the_first_process_is_killed():
    with together(loop(), 3, devices=1) as processes:
        wait_for(processes)
        processes[0].kill()
        for index in (1, 2):  # either by themselves or by JAX, whichever is first
            err = said(processes[index], seconds=15)
            assert processes[index].returncode in (1, -signal.SIGABRT)
            assert f"error: process {index} (of 0 to 2) " in err
            assert err.count(AGAIN) >= 1


def test_a_process_that_vanishes_without_a_sign_is_missed_when_its_heartbeats_are():
    with together(loop(), 2, devices=1) as processes:
        wait_for(processes)
        processes[1].send_signal(signal.SIGSTOP)  # as a machine without power: nobody is told
        err = said(processes[0], seconds=40)
        assert processes[0].returncode == -signal.SIGABRT
        assert "heartbeat" in err
        assert err.endswith(
            "error: process 0 (of 0 to 1) was killed, or JAX ended it because another one is gone, "
            f"and says so above; {AGAIN}"
        )


def test_a_process_that_fails_takes_the_others_with_it():
    with together(loop(fails="1"), 2, devices=1) as processes:
        err = said(processes[1], seconds=60)
        assert (processes[1].returncode, err) == (1, "error: the disk is full\n")
        err = said(processes[0], seconds=5)
        assert processes[0].returncode == 1
        assert "has lost another one" in err


TRAINING = """
import sys
from mambaout_jax.cli import distributed
from mambaout_jax.cli.main import main
distributed.HEARTBEAT_SECONDS = 20
sys.exit(main(sys.argv[1:]))
"""


def test_a_training_that_loses_a_process_ends_also_while_it_saves(tmp_path):
    workdir = tmp_path / "run"

    def command(address, count, index):
        return ["-c", TRAINING, "train", "--config", tiny_run.__file__, "--workdir", str(workdir),
                "--config.schedule.total_steps=100000", "--config.checkpoint.every_steps=2",
                f"--distributed={address},{count},{index}"]  # fmt: skip

    with together(command, 2, devices=1) as processes:
        signal_after(processes[0], workdir, 6, signal.SIGCONT)  # which does nothing
        processes[1].kill()
        err = said(processes[0], seconds=40)
        assert processes[0].returncode in (1, -signal.SIGABRT)  # a barrier may wait for heartbeats
    assert re.search(
        r"^error: process 0 \(of 0 to 1\) (has lost another one|was killed)", err, re.M
    )
    assert err.endswith(AGAIN)
    assert "free space" not in err
    assert read_checkpoint(workdir / "checkpoints").step >= 6
