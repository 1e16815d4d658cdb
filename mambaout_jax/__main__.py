# SPDX-License-Identifier: Apache-2.0
"""The command `mambaout`, which is also `python -m mambaout_jax`."""

import os
import signal
from types import FrameType

from mambaout_jax.runtime.huge_pages import restart_with_huge_pages
from mambaout_jax.runtime.streams import complain

_INTERRUPTED = 130  # as shells say it: 128 and the number of SIGINT


def run() -> int:
    """Runs the command line in a process with huge pages; returns its exit code."""
    try:
        signal.signal(signal.SIGINT, _interrupt)
        restart_with_huge_pages()
        from mambaout_jax.cli.main import main  # after the restart: nothing is imported twice

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        # What is left is Python's end: Ctrl-C in it ends the process, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Ctrl-C: an exception, but inside an import, where extensions turn it into errors of theirs.

    What a command writes is not under way there.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            complain("interrupted")
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(run())
