# SPDX-License-Identifier: Apache-2.0
"""The training batches of a run, and how many of their examples had to be replaced."""

import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from mambaout_jax.config import Config
from mambaout_jax.data.loader import TrainingView, train_batches
from mambaout_jax.data.sets.sources import Source

# Fewer unreadable examples than this never stop a run, whatever their share.
_MIN_CORRUPT = 10


class Reader:
    """Training batches of this process. A context manager, which ends their threads.

    Args:
        config: reads `data.max_corrupt_fraction` and what `train_batches` reads.
        source, view, groups: see `train_batches`.
        start: batches read or left out so far.
        replaced: examples replaced in them, over all processes.

    Attributes:
        seconds: how long the last batch was waited for.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        view: TrainingView,
        start: int,
        replaced: int,
        groups: Sequence[int] | None = None,
    ):
        self._config = config
        self._batches = train_batches(
            config,
            source,
            view,
            groups=groups,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._replaced_here = 0
        self.replaced = replaced
        self.seconds = 0.0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

    def next(self) -> dict[str, np.ndarray]:
        """The next batch."""
        began = time.perf_counter()
        batch = dict(next(self._batches))
        self.seconds = time.perf_counter() - began
        self._replaced_here += int(batch.pop("replaced").sum())
        return batch

    def check(self, step: int) -> None:
        """Adds up what all processes have replaced up to `step`; every process must call it.

        Raises:
            RuntimeError: too many examples could not be read.
        """
        here = np.array(self._replaced_here, np.int32)
        self.replaced += int(multihost_utils.process_allgather(here).sum())
        self._replaced_here = 0
        read, limit = step * self._config.batch_size, self._config.data.max_corrupt_fraction
        if self.replaced > max(_MIN_CORRUPT, limit * read):
            raise RuntimeError(
                f"{self.replaced} of {read} training examples could not be read and were "
                f"replaced, more than data.max_corrupt_fraction={limit}; the log names the "
                "files: repair or remove them, or raise the limit"
            )
