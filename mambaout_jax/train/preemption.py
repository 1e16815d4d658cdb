# SPDX-License-Identifier: Apache-2.0
"""Stopping in time: a signal asks training to end, the loop saves and raises `Preempted`."""

import signal
import threading
from pathlib import Path

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(SystemExit):
    """Training was asked to stop and has saved its state; ends the program with exit code 75.

    Args:
        step: the last update made.
        checkpoint: directory of the state.
    """

    def __init__(self, step: int, checkpoint: Path):
        super().__init__(EXIT_CODE)
        self.step, self.checkpoint = step, checkpoint

    def __str__(self):
        return (
            f"stopped after step {self.step} as asked; the state is in {self.checkpoint}: run the "
            "same command again to continue"
        )


class PreemptionGuard:
    """Turns SIGTERM and SIGINT into a question that the loop asks between two updates.

    In one process the first signal only sets a flag, and SIGINT (Ctrl-C) after it raises
    KeyboardInterrupt at once; the previous handlers come back on exit. Python lets only the main
    thread set handlers: entered in another thread, the guard leaves the signals as they are.

    With several processes the guard sets no handlers: `jax.distributed` notes a SIGTERM that
    reaches any of them, and all processes are told at the same step.
    """

    def __init__(self):
        self._signalled = False
        self._previous = {}

    def __enter__(self):
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            # None: the handler was not set from Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process must ask at every step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._signalled

    def _handle(self, number, _frame):
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
