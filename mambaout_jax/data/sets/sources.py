# SPDX-License-Identifier: Apache-2.0
"""What a data set is to the loader (`Source`), how a config opens one, and folders of images."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from mambaout_jax.config import Config
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.image_files import (
    IMAGE_SUFFIXES,
    VALIDATION_FOLDERS,
    UnreadableImageError,
    images_by_class,
    is_image,
    read_image,
)
from mambaout_jax.data.sets.imagenet import open_imagenet
from mambaout_jax.paths import local_path

SPLITS = ("train", "validation")
MAX_REPLACEMENTS = 10

_logger = logging.getLogger("mambaout_jax")


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of examples, safe to read from many threads and to pickle.

    `source[i]` is a dict that the views of a task take. Access to an image that cannot be decoded
    raises `UnreadableImageError`.
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


class ImageFolder:
    """Images in one sub-folder per class, at any depth inside it.

    If `root` holds `train` and one of `VALIDATION_FOLDERS` (the first that exists is used), these
    are the splits. Otherwise a fixed share of every class is held out: the files whose paths have
    the lowest hashes, so that the split does not depend on a seed and hardly changes when files are
    added. Each class keeps at least one image in both splits.

    The suffix decides which files are images (`IMAGE_SUFFIXES`, in upper case too); hidden files
    and folders do not count. Labels number the class names in sorted order.

    Args:
        root: the folder.
        split: "train" or "validation".
        validation_fraction: share of each class to hold out, if `root` has no splits of its own.
        channels: 1 decodes to greyscale, 3 to RGB (`read_image`).
        decoder: "pillow" or "opencv" (`read_image`).

    Attributes:
        files: paths of the images, relative to `root`, with "/" on every system.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: `root` is not a folder of at least two classes, the classes of its two splits
            differ, or a class or a split would be empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        validation_fraction: float,
        channels: int = 3,
        decoder: str = "pillow",
    ):
        self._root = Path(root).expanduser()
        self._channels = channels
        self._decoder = decoder
        if not self._root.exists():
            raise FileNotFoundError(
                f"data.path={root} does not exist; set --config.data.path to a folder that holds "
                "one sub-folder of images per class"
            )
        if not self._root.is_dir():
            raise ValueError(
                f"data.path={root} is a file; set --config.data.path to a folder that holds one "
                "sub-folder of images per class"
            )
        validation_folder = next(
            (name for name in VALIDATION_FOLDERS if (self._root / name).is_dir()), None
        )
        if (self._root / "train").is_dir() and validation_folder:
            files = _splits_from_folders(self._root, validation_folder)[split]
        else:
            files = _splits_by_hash(self._root, validation_fraction)[split]
        self.class_names = tuple(files)
        self.num_classes = len(files)
        self.files = [file for members in files.values() for file in members]
        self._labels = np.repeat(
            np.arange(len(files), dtype=np.int32), [len(members) for members in files.values()]
        )
        if not self.files:
            raise ValueError(
                f"the {split} split of {root} holds no images; "
                f"data.validation_fraction={validation_fraction} decides the split unless {root} "
                f"holds train/ and {validation_folder or VALIDATION_FOLDERS[0]}/ with images"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        image = read_image(self._root / self.files[index], self._channels, self._decoder)
        return {"image": image, "label": int(self._labels[index])}


def _splits_from_folders(root: Path, validation_folder: str) -> dict[str, dict[str, list[str]]]:
    train = images_by_class(root, root / "train")
    validation = images_by_class(root, root / validation_folder)
    if train.keys() != validation.keys():
        raise ValueError(
            f"train/ and {validation_folder}/ of {root} have different classes: only in train/: "
            f"{sorted(train.keys() - validation.keys())}; only in {validation_folder}/: "
            f"{sorted(validation.keys() - train.keys())}; give both the same sub-folders (an empty "
            f"one will do in {validation_folder}/)"
        )
    _check_classes(root / "train", train)
    return {"train": train, "validation": validation}


def _splits_by_hash(root: Path, fraction: float) -> dict[str, dict[str, list[str]]]:
    by_class = images_by_class(root, root)
    _check_classes(root, by_class)
    train, validation = {}, {}
    for name, files in by_class.items():
        held_out = round(fraction * len(files))
        if 0 < fraction < 1:
            if len(files) == 1:
                raise ValueError(
                    f"class {name!r} of {root} has a single image, which cannot be both trained on "
                    "and held out; add images, remove the class, or give the folder train/ and "
                    "val/ sub-folders"
                )
            held_out = min(max(held_out, 1), len(files) - 1)
        ranked = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
        train[name], validation[name] = sorted(ranked[held_out:]), sorted(ranked[:held_out])
    return {"train": train, "validation": validation}


def _check_classes(folder: Path, by_class: dict[str, list[str]]) -> None:
    """Raises ValueError if there are not at least two classes, each with images."""
    if not by_class:
        lie_directly = any(is_image(name) for name in os.listdir(folder))
        found = "its images are directly in it" if lie_directly else "and no images"
        raise ValueError(
            f"{folder} has no sub-folders ({found}); put the images of each class into a "
            "sub-folder named after the class"
        )
    if not any(by_class.values()):
        raise ValueError(
            f"no images below {folder}; images are files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    if len(by_class) == 1:
        (name,) = by_class
        raise ValueError(
            f"{folder} has only one class, {name!r}; classification needs two or more sub-folders "
            f"(a split of your own is train/ beside one of {', '.join(VALIDATION_FOLDERS)})"
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise ValueError(
            f"classes without images in {folder}: {empty}; add images to these sub-folders or "
            "remove them"
        )


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
            data.path, split, data.validation_fraction, data.channels, decoder
        ),
        f"{_FOLDERS}, or such sub-folders alone",
    ),
    "imagenet": DataSet(
        lambda data, split, decoder: open_imagenet(data.path, split, data.channels, decoder),
        f"{_FOLDERS}, or what `mambaout prepare` wrote",
    ),
}
