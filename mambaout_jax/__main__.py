# SPDX-License-Identifier: Apache-2.0
"""The command `mambaout`, which is also `python -m mambaout_jax`."""

from mambaout_jax.runtime.huge_pages import restart_with_huge_pages


def run() -> int:
    """Runs the command line in a process with huge pages; returns its exit code."""
    restart_with_huge_pages()
    from mambaout_jax.cli.main import main  # after the restart, so that nothing is imported twice

    return main()


if __name__ == "__main__":
    raise SystemExit(run())
