# SPDX-License-Identifier: Apache-2.0
"""Processes that run as one, on this machine."""

import contextlib
import os
import socket
import subprocess
import sys

from support.places import ROOT


def free_address():
    """HOST:PORT on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def together(command, count, devices):
    """Python processes with `devices` devices each; none of them outlives the block.

    Args:
        command: given the address, how many there are and a number, the arguments of a Python that
            runs in tests/.
    """
    address, processes = free_address(), []
    try:
        for index in range(count):
            process = subprocess.Popen(
                [sys.executable, *command(address, count, index)],
                env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}, cwd=ROOT / "tests",
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
