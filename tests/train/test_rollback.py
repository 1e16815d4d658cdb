# SPDX-License-Identifier: Apache-2.0
"""After a loss that is not finite: what is advised, and what a run leaves out."""

import math
from pathlib import Path

import pytest
from support.tiny_run import get_config

from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.train.interval import NotFiniteError
from mambaout_jax.train.rollback import Skipped, roll_back

BAD = NotFiniteError("loss", math.nan, 17)


class Saved(Checkpointer):
    """As much of one as is asked for here."""

    waited = False

    def __init__(self, path):
        self.path = path

    @property
    def latest_path(self):
        assert self.waited  # for a save of a good state that may be under way
        return self.path

    def wait(self):
        self.waited = True


def config(on_nan, dtype="float32"):
    config = get_config()
    config.on_nan, config.model.dtype = on_nan, dtype
    return config


LOWER = "a lower optimizer.learning_rate or optimizer.clip_norm=1.0"


@pytest.mark.parametrize(
    ("dtype", "path", "words"),
    [
        (
            "float32",
            Path("run/checkpoints/12"),
            "the loss is nan at step 17; the last good checkpoint is run/checkpoints/12. Train "
            f'into another --workdir with {LOWER}, or set --config.on_nan="roll back" to leave out '
            "the data that led here",
        ),
        (
            "bfloat16",
            None,
            "the loss is nan at step 17; nothing is saved yet. Run the command again with a lower "
            "optimizer.learning_rate, optimizer.clip_norm=1.0 or model.dtype=float32: it starts "
            "over",
        ),
    ],
)
def test_a_run_that_stops_is_told_what_it_may_do(dtype, path, words):
    with pytest.raises(FloatingPointError) as error:
        roll_back(BAD, config("stop", dtype), Saved(path), [])
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ([], Path("run/checkpoints/12"), [Skipped(12, 5)]),
        ([], None, [Skipped(0, 17)]),
        ([Skipped(3, 2)], Path("run/checkpoints/12"), [Skipped(3, 2), Skipped(12, 5)]),
        ([Skipped(12, 4)], Path("run/checkpoints/12"), [Skipped(12, 4), Skipped(12, 5)]),
    ],
)
def test_what_led_there_is_left_out(before, path, after, caplog):
    assert roll_back(BAD, config("roll back"), Saved(path), before) == after
    assert caplog.messages == [
        f"the loss is nan at step 17; back to step {after[-1].step}, leaving out the "
        f"{after[-1].batches} batches in between (roll-back {len(after)} of at most 3)"
    ]


def test_a_run_is_rolled_back_three_times():
    with pytest.raises(FloatingPointError) as error:
        roll_back(BAD, config("roll back"), Saved(Path("run/12")), [Skipped(1, 2)] * 3)
    assert str(error.value) == (
        "the loss is nan at step 17, after 3 roll-backs; the last good checkpoint is run/12. "
        f"Train into another --workdir with {LOWER}"
    )
