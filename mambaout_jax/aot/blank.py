# SPDX-License-Identifier: Apache-2.0
"""Data sets that are not here: as many examples, of the same classes, all of them blank."""

from typing import Any

import numpy as np
from PIL import Image

from mambaout_jax.config import Config
from mambaout_jax.data.sets.ade20k import CLASS_NAMES as ADE20K_CLASSES
from mambaout_jax.data.sets.sources import open_source
from mambaout_jax.imagenet_classes import CLASS_NAMES as IMAGENET_CLASSES

_SIZE = (480, 640)  # height and width

# Examples of each split, and the classes.
_SETS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "imagenet": ({"train": 1_281_167, "validation": 50_000}, tuple(IMAGENET_CLASSES)),
    "coco": ({"train": 117_266, "validation": 5_000}, tuple(f"class {i}" for i in range(80))),
    "ade20k": ({"train": 20_210, "validation": 2_000}, tuple(ADE20K_CLASSES)),
}


class Blank:
    """A split of a known data set without its images; enough to compile a program for it.

    Args:
        source: a key of `_SETS`.
        split: "train" or "validation".
        task: whose examples these are.
        channels: of the images.
    """

    def __init__(self, source: str, split: str, task: str, channels: int):
        counts, self.class_names = _SETS[source]
        self.num_classes = len(self.class_names)
        self.category_ids = tuple(range(1, self.num_classes + 1))
        self._count, self._task, self._channels = counts[split], task, channels
        self.image_sizes = np.tile(np.asarray(_SIZE, np.int32), (self._count, 1))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = Image.new("L" if self._channels == 1 else "RGB", (_SIZE[1], _SIZE[0]))
        if self._task == "classification":
            return {"image": image, "label": 0}
        if self._task == "segmentation":
            return {"image": image, "labels": np.zeros(_SIZE, np.uint8)}
        whole = np.array([[0, 0, _SIZE[1], _SIZE[0]]], np.float32)
        masks, labels = np.ones((1, *_SIZE), bool), np.zeros(1, np.int32)
        return {"image": image, "boxes": whole, "labels": labels, "masks": masks, "image_id": index}

    def ground_truth(self) -> dict[str, Any]:
        """No annotations."""
        categories = [{"id": i, "name": x} for i, x in enumerate(self.class_names, start=1)]
        return {"images": [], "annotations": [], "categories": categories}


def open_or_blank(data: Config, split: str, task: str) -> Any:
    """The set that a config names, where `data.path` says where it is or it is generated.

    Raises:
        ValueError: what a set without a path has is not known; or as `open_source`.
    """
    if data.path or data.source not in _SETS:
        return open_source(data, split, task)
    return Blank(data.source, split, task, data.channels)
