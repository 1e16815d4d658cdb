# SPDX-License-Identifier: Apache-2.0
"""Preemption: real signals, to this process and to another one."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from mambaout_jax.train.preemption import Preempted, PreemptionGuard


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_guard_turns_a_signal_into_a_request(number):
    before = handlers()
    with PreemptionGuard() as guard:
        assert not guard.requested(1)
        os.kill(os.getpid(), number)
        assert guard.requested(1)
        assert guard.requested(2)
    assert handlers() == before


def test_guard_lets_a_second_interrupt_through():
    before = handlers()
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_guard_restores_the_handlers_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), PreemptionGuard():
        raise ZeroDivisionError
    assert handlers() == before


def test_guard_leaves_the_signals_alone_in_another_thread():
    before, seen = handlers(), []

    def run():
        with PreemptionGuard() as guard:
            seen.append((handlers() == before, guard.requested(1)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_preempted_ends_the_program_with_code_75():
    source = """
        import os, pathlib, signal
        from mambaout_jax.train.preemption import Preempted, PreemptionGuard
        with PreemptionGuard() as guard:
            for step in range(1, 100):
                if step == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                if guard.requested(step):
                    raise Preempted(step, pathlib.Path("run/checkpoints/7"))
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    assert subprocess.run(command, timeout=120).returncode == 75


def test_preempted_says_how_to_continue():
    assert str(Preempted(7, Path("run/checkpoints/7"))) == (
        "stopped after step 7 as asked; the state is in run/checkpoints/7: run the same command "
        "again to continue"
    )


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_when_one_is_signalled(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    source = """
        import os, pathlib, signal, sys, time
        import jax
        index = int(sys.argv[2])
        jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, index)
        from mambaout_jax.train.preemption import PreemptionGuard
        with PreemptionGuard() as guard:
            for step in range(1, 1000):
                if index == 0 and step == 20:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01 * (1 + index))
                if guard.requested(step):
                    break
        jax.experimental.multihost_utils.sync_global_devices("stopped")
        pathlib.Path(sys.argv[3], str(index)).write_text(str(step))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source), str(port), str(index), str(tmp_path)]
        )
        for index in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = (int((tmp_path / str(index)).read_text()) for index in range(2))
    assert first == second
    assert 20 <= first < 999
