# SPDX-License-Identifier: Apache-2.0
"""What happens when the loss is not finite: advice, or back to the last checkpoint and other data.

The batches between that checkpoint and the bad update are left out: all later updates read later
batches. Checkpoints say what was left out before them, so a run that is killed and resumed does the
same as one that is not. (One that a signal has stopped has one checkpoint more to go back to.)
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mambaout_jax.config import Config
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.train.interval import NotFiniteError

MOST_ROLLBACKS = 3

_LOG = logging.getLogger("mambaout_jax")


class Skipped(NamedTuple):
    """Batches that were left out: after how many updates, and how many."""

    step: int
    batches: int


def roll_back(
    error: NotFiniteError, config: Config, checkpointer: Checkpointer, skipped: Sequence[Skipped]
) -> list[Skipped]:
    """What the run leaves out when it goes on from its last checkpoint.

    Args:
        skipped: what it has left out before the error.

    Raises:
        FloatingPointError: the config says to stop, or the run has been rolled back often enough;
            names the update, the last good checkpoint and what to do.
    """
    checkpointer.wait()  # a save may be under way, of a good state
    path = checkpointer.latest_path
    saved = f"the last good checkpoint is {path}" if path else "nothing is saved yet"
    if config.on_nan == "stop":
        raise FloatingPointError(f"{error}; {saved}. {_advice(config, path)}") from error
    if len(skipped) >= MOST_ROLLBACKS:
        raise FloatingPointError(
            f"{error}, after {MOST_ROLLBACKS} roll-backs; {saved}. {_advice(config, path)}"
        ) from error
    start = int(path.name) if path else 0
    batches = error.step - start
    _LOG.warning(
        "%s; back to step %d, leaving out the %d batches in between (roll-back %d of at most %d)",
        error, start, batches, len(skipped) + 1, MOST_ROLLBACKS,
    )  # fmt: skip
    return [*skipped, Skipped(start, batches)]


def _advice(config: Config, checkpoint: Path | None) -> str:
    changes = "a lower optimizer.learning_rate or optimizer.clip_norm=1.0"
    if config.model.dtype != "float32":
        changes = "a lower optimizer.learning_rate, optimizer.clip_norm=1.0 or model.dtype=float32"
    if checkpoint is None:
        return f"Run the command again with {changes}: it starts over"
    other = f"Train into another --workdir with {changes}"
    if config.on_nan == "stop":
        return f'{other}, or set --config.on_nan="roll back" to leave out the data that led here'
    return other
