# SPDX-License-Identifier: Apache-2.0
"""What tasks share whose outputs stand for classes that have names."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8

from mambaout_jax.config import Config
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.tasks.task import Task

_LOG = logging.getLogger("mambaout_jax")


@dataclasses.dataclass(frozen=True)
class Named(Task):
    """A task whose outputs are of classes.

    Attributes:
        config: the whole config.
        class_names: in the order of the model's outputs.
    """

    config: Config
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def are_named(self) -> bool:
        """False where classes are called by their numbers, as weights did not tell their names."""
        return self.class_names != _numbered(self.num_classes)

    @classmethod
    def from_config(cls, config: Config, source: Any) -> "Named":
        return cls(config, tuple(source.class_names))

    def record(self) -> dict[str, Any]:
        return {"classes.json": list(self.class_names)}

    def pixels(self, images: Float[Array, "B H W C"]) -> UInt8[np.ndarray, "B H W C"]:
        """Normalised images as they were, to be drawn."""
        mean, std = (np.asarray(self.config.data[name], np.float32) for name in ("mean", "std"))
        pixels = np.clip((np.asarray(images) * std + mean) * 255, 0, 255).round()
        return pixels.astype(np.uint8)


def names_of_weights(
    source: str | Path, preprocessing: Preprocessing, count: int
) -> tuple[str, ...]:
    """Names of the outputs of weights; numbers, with a warning, where their names are not as many.

    Args:
        source: where the weights are from.
        preprocessing: what came with them.
        count: outputs of their model.
    """
    names = preprocessing.class_names
    if names is not None and len(names) != count:
        _LOG.warning(
            "%s names %d classes, and the model has %d: they are called by their numbers",
            source, len(names), count,
        )  # fmt: skip
        names = None
    return _numbered(count) if names is None else names


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(count))
