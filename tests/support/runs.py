# SPDX-License-Identifier: Apache-2.0
"""What tests of whole runs ask of their working directories."""

import shutil
import time

import jax
import numpy as np
import pytest

from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.train.writer import read_metrics

TIMES = {"train/images_per_second", "train/step_milliseconds", "train/data_wait_fraction"}


def timeless_metrics(workdir):
    """The lines of a run's metrics without what a clock decides."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(workdir)
    ]


def final_state(workdir):
    """Every leaf of the newest checkpoint, as bytes."""
    restored = read_checkpoint(workdir / "checkpoints")
    return restored.step, jax.tree.map(lambda x: x.tobytes(), restored.state)


def assert_close(workdir, other, atol):
    """The final parameters and averages of two runs, up to rounding."""
    ours, theirs = (read_checkpoint(path / "checkpoints").state for path in (workdir, other))
    for name in ("params", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours[name], theirs[name]
        )


def checkpoints(workdir):
    folders = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in folders if path.name.isdigit())


def signal_after(process, workdir, step, number):
    """Sends a running process a signal once the checkpoint of `step`, not the run, is complete."""
    deadline = time.monotonic() + 600
    while not (workdir / "checkpoints" / str(step)).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no checkpoint of step {step}: {process.communicate()}")
        time.sleep(0.005)
    process.send_signal(number)


def rewind(workdir, to, step):
    """A copy of a run as a kill leaves it: the metrics are further than the checkpoints."""
    shutil.copytree(workdir, to)
    for later in checkpoints(to):
        if later > step:
            shutil.rmtree(to / "checkpoints" / str(later))
    return to


def flip_a_byte_of_the_data(checkpoint):
    """In the largest file of the state, among the values, which are read without an error."""
    path = max(checkpoint.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
