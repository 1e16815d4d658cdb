# SPDX-License-Identifier: Apache-2.0
"""The command `mambaout`, which is also `python -m mambaout_jax`."""

import signal

from mambaout_jax.runtime.huge_pages import restart_with_huge_pages


def run() -> int:
    """Runs the command line in a process with huge pages; returns its exit code."""
    try:
        restart_with_huge_pages()
        from mambaout_jax.cli.main import main  # after the restart: nothing is imported twice

        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        # What is left is Python's end: Ctrl-C in it ends the process, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(run())
