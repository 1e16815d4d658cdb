# SPDX-License-Identifier: Apache-2.0
"""The records of prepared sets: ArrayRecord shards read as one sequence."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mambaout_jax.data.sets.image_files import UnreadableImageError


class Records:
    """Records of several shards, in their order; safe to read from threads and to pickle.

    ArrayRecord keeps a hash of every chunk, so that a flipped bit is an error and not another
    image.

    Args:
        shards: the files, at least one, all of one folder.
        prepare: the command that makes them, for messages.

    Raises:
        ModuleNotFoundError: array_record is not installed.
        ValueError: a shard is damaged. On access: `UnreadableImageError`, where a record is.
    """

    def __init__(self, shards: Sequence[Path], prepare: str):
        require_array_record()
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._folder = shards[0].parent
        try:
            self._records = ArrayRecordDataSource([str(shard) for shard in shards])
        except Exception as error:  # ArrayRecord's are of many types
            reason = " ".join(str(error).split())
            raise ValueError(
                f"a shard of {self._folder} is damaged ({reason}); copy the folder again, or "
                f"prepare the data again: {prepare}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        try:
            return self._records[index]
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UnreadableImageError(
                f"cannot read record {index} of {self._folder}: {reason}"
            ) from error


def require_array_record() -> None:
    """Raises ModuleNotFoundError where the package for prepared sets is not installed."""
    if importlib.util.find_spec("array_record") is None:
        raise ModuleNotFoundError(
            "prepared sets need the package array_record, which is not installed: "
            "pip install 'mambaout-jax[data]' (TensorFlow is not needed)"
        )
