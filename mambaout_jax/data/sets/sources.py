# SPDX-License-Identifier: Apache-2.0
"""What a data set is to the loader (`Source`), and how a config opens one."""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from mambaout_jax.config import Config
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.folder import ImageFolder
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.sets.imagenet import open_imagenet
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


def open_source(data: Config, split: str) -> LabelledImages:
    """Opens a split of the data set that a config names.

    `data.decoder` is used for training images only; evaluation always decodes with Pillow.

    Args:
        data: section `data` of a config.
        split: "train" or "validation".

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
    if chosen.wants and not data.path:
        raise ValueError(
            f"data.source={data.source!r} needs the folder: set --config.data.path=DIR, where DIR "
            f"holds {chosen.wants}"
        )
    local_path(data.path)  # refuses an address; whoever opens the path expands it
    return chosen.open(data, split, data.decoder if split == "train" else "pillow")


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
        open: section `data` of a config, split and decoder to a source.
        wants: what `data.path` has to hold; "" where nothing is read from there.
    """

    open: Callable[[Config, str, str], LabelledImages]
    wants: str = ""


_FOLDERS = "train/ and val/ with one sub-folder of images per class"

# By the name that `data.source` takes. To add one, write its file and name it here.
SETS: dict[str, DataSet] = {
    "digits": DataSet(lambda data, split, decoder: Digits(split, data.channels)),
    "folder": DataSet(
        lambda data, split, decoder: ImageFolder(
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
        lambda data, split, decoder: open_imagenet(
            data.path, split, data.channels, decoder, data.max_pixels
        ),
        f"{_FOLDERS}, or what `mambaout prepare` wrote",
    ),
}
