# SPDX-License-Identifier: Apache-2.0
"""What a data set is to the loader (`Source`), and how a config opens one."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mambaout_jax.config import Config
from mambaout_jax.data.sets.ade20k import open_ade20k
from mambaout_jax.data.sets.coco import open_coco
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.folder import ImageFolder
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.sets.imagenet import open_imagenet
from mambaout_jax.data.sets.scenes import KINDS, Scenes
from mambaout_jax.paths import local_path

SPLITS = ("train", "validation")
MAX_REPLACEMENTS = 10

_logger = logging.getLogger("mambaout_jax")


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of examples, safe to read from many threads and to pickle.

    `source[i]` is a dict that the views of a task take. Access to an image that cannot be decoded
    raises `UnreadableImageError`. One that is `identity.Fingerprinted`, too, is told from another.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@runtime_checkable
class LabelledImages(Source, Protocol):
    """Images of known classes.

    `source[i]` is `{"image": Decoded, "label": int}`. The image is a Pillow image of mode "L" or
    "RGB", or uint8 pixels (H, W, C) if OpenCV has decoded it.
    """

    class_names: tuple[str, ...]
    num_classes: int


@runtime_checkable
class DetectionImages(Source, Protocol):
    """Images whose objects have boxes and masks.

    `source[i]` is `{"image": Decoded, "boxes": float32 (n, 4), "labels": int32 (n,), "masks": bool
    (n, H, W), "image_id": int}`: boxes x1 y1 x2 y2 in pixels of this image, labels 0 and on. Only
    what is trained on is there: regions of crowds are in `ground_truth` alone.

    Attributes:
        class_names, num_classes: of the labels.
        category_ids: the number that the ground truth uses for each label.
        image_sizes: int32 (N, 2), height and width of each image, known without decoding.
    """

    class_names: tuple[str, ...]
    num_classes: int
    category_ids: tuple[int, ...]
    image_sizes: Int[np.ndarray, "N 2"]

    def ground_truth(self) -> dict[str, Any]:
        """All that an evaluation counts with, in the form of COCO's JSON files, crowds included."""
        ...


@runtime_checkable
class SegmentationImages(Source, Protocol):
    """Images whose every pixel has a class.

    `source[i]` is `{"image": Decoded, "labels": uint8 (H, W)}`, where 255 is not counted.

    Attributes:
        class_names, num_classes: of the labels 0 and on.
        image_sizes: int32 (N, 2), height and width of each image, known without decoding.
    """

    class_names: tuple[str, ...]
    num_classes: int
    image_sizes: Int[np.ndarray, "N 2"]


def open_source(data: Config, split: str, task: str = "classification") -> Any:
    """Opens a split of the data set that a config names.

    `data.decoder` is used for training images only; evaluation always decodes with Pillow.

    Args:
        data: section `data` of a config.
        split: "train" or "validation".
        task: name of the task that it is for, as in `config.task`.

    Returns:
        What that task reads: `LabelledImages` for "classification", `DetectionImages` for
        "detection", `SegmentationImages` for "segmentation".

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: the split, the data set or its folder
            cannot be used; the message says what to change.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known; allowed are {SPLITS}")
    if data.source not in SETS:
        words = ", ".join(map(repr, SETS))
        raise ValueError(f"data.source={data.source!r} is not known; allowed are {words}")
    chosen = SETS[data.source]
    if task not in chosen.tasks:
        fitting = ", ".join(repr(name) for name, one in SETS.items() if task in one.tasks)
        raise ValueError(
            f"data.source={data.source!r} has examples for {' and '.join(chosen.tasks)}, not for "
            f"task={task!r}; "
            + (f"those that have are {fitting}" if fitting else "no other set has them either")
        )
    if chosen.wants and not data.path:
        raise ValueError(
            f"data.source={data.source!r} needs the folder: set --config.data.path=DIR, where DIR "
            f"holds {chosen.wants}"
        )
    local_path(data.path)  # refuses an address; whoever opens the path expands it
    return chosen.open(data, split, data.decoder if split == "train" else "pillow", task)


def set_of_folder(task: str) -> str:
    """What `data.source` is for a folder that somebody names to evaluate on.

    Raises:
        ValueError: no set of this task is read from a folder.
    """
    for name, one in SETS.items():
        if one.wants and task in one.tasks:
            return name
    raise ValueError(f"no data set for task={task!r} is read from a folder; leave --data out")


class ReplaceUnreadable:
    """A training source in which the next readable example replaces an unreadable one.

    Every example has a key `"replaced": bool`, so that replacements can be counted from the
    batches, whichever thread or process made them. Each unreadable file is logged once per process.

    Raises (on access):
        UnreadableImageError: the example and the `MAX_REPLACEMENTS` after it are all unreadable.
    """

    def __init__(self, source: Source):
        self._source = source
        self._logged = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        for offset in range(MAX_REPLACEMENTS + 1):
            position = (index + offset) % len(self._source)
            try:
                return {**self._source[position], "replaced": offset > 0}
            except UnreadableImageError as error:
                last = error
                ticket = object()
                # setdefault is atomic: if two threads meet the same file, only one logs it.
                if self._logged.setdefault(position, ticket) is ticket:
                    _logger.warning("%s; another image takes its place", error)
        raise UnreadableImageError(
            f"{MAX_REPLACEMENTS + 1} examples in a row are unreadable, the last: {last}; check "
            "that the data set is complete and its disk reachable"
        )


class DataSet(NamedTuple):
    """How a data set is opened.

    Attributes:
        open: section `data` of a config, split, decoder and task to a source.
        wants: what `data.path` has to hold; "" where nothing is read from there.
        tasks: names of the tasks for which it has examples.
    """

    open: Callable[[Config, str, str, str], Any]
    wants: str = ""
    tasks: tuple[str, ...] = ("classification",)


_FOLDERS = "train/ and val/ with one sub-folder of images per class"

# By the name that `data.source` takes. To add one, write its file and name it here.
SETS: dict[str, DataSet] = {
    "digits": DataSet(lambda data, split, decoder, task: Digits(split, data.channels)),
    "folder": DataSet(
        lambda data, split, decoder, task: ImageFolder(
            data.path,
            split,
            data.validation_fraction,
            data.channels,
            decoder,
            data.max_pixels,
        ),
        f"{_FOLDERS}, or such sub-folders alone",
    ),
    "imagenet": DataSet(
        lambda data, split, decoder, task: open_imagenet(
            data.path, split, data.channels, decoder, data.max_pixels
        ),
        f"{_FOLDERS}, or what `mambaout prepare` wrote",
    ),
    "coco": DataSet(
        lambda data, split, decoder, task: open_coco(
            data.path, split, data.channels, decoder, data.max_pixels
        ),
        "annotations/instances_train2017.json and instances_val2017.json with train2017/ and "
        "val2017/, or what `mambaout prepare` wrote",
        ("detection",),
    ),
    "ade20k": DataSet(
        lambda data, split, decoder, task: open_ade20k(
            data.path, split, data.channels, decoder, data.max_pixels
        ),
        "images/ and annotations/ with training/ and validation/, or what `mambaout prepare` wrote",
        ("segmentation",),
    ),
    "scenes": DataSet(
        lambda data, split, decoder, task: Scenes(split, task, data.image_size, data.channels),
        tasks=KINDS,
    ),
}
