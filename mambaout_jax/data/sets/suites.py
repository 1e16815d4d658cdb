# SPDX-License-Identifier: Apache-2.0
"""The test sets of ImageNet classifiers, from the user's own copies.

One folder holds them, or links to them, under these names; sets that are not there are left out:

    imagenet/                              val/<synset>/, or as `mambaout prepare` writes it
    real.json                              the labels of ReaL, for the images in imagenet/
    imagenet-v2/<class>/                   0 to 999, matched frequency
    imagenet-a/<synset>/                   200 classes
    imagenet-r/<synset>/                   200 classes
    imagenet-sketch/<synset>/
    imagenet-c/<corruption>/<1 to 5>/<synset>/

The class of a synset is its index among the thousand in sorted order; the class of a folder of
ImageNet-V2 is its name as a number, which is not its index in a sorted listing.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from mambaout_jax.data.sets.image_files import decode_image, read_image
from mambaout_jax.data.sets.imagenet import (
    LABELS,
    ImageNetFolders,
    PreparedImageNet,
    labelled_folders,
    open_imagenet,
    prepared_versions,
)
from mambaout_jax.data.sets.listing import images_by_class, split_folder
from mambaout_jax.data.sets.sources import Source
from mambaout_jax.imagenet_classes import CLASS_NAMES

SUITES = ("val", "real", "v2", "a", "r", "sketch", "c")
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)

_FOLDERS = {
    "v2": "imagenet-v2",
    "a": "imagenet-a",
    "r": "imagenet-r",
    "sketch": "imagenet-sketch",
    "c": "imagenet-c",
}
# Classes and images as published; for "c" those of each severity's folder.
_SIZES = {
    "val": (1000, 50_000),
    "v2": (1000, 10_000),
    "a": (200, 7_500),
    "r": (200, 30_000),
    "sketch": (1000, 50_889),
    "c": (1000, 50_000),
}
_ORIGINS = {
    "val": "ILSVRC2012_img_val.tar from image-net.org with `mambaout prepare imagenet`",
    "real": "real.json from github.com/google-research/reassessed-imagenet, beside imagenet/",
    "v2": "imagenetv2-matched-frequency.tar.gz from github.com/modestyachts/ImageNetV2",
    "a": "imagenet-a.tar from github.com/hendrycks/natural-adv-examples",
    "r": "imagenet-r.tar from github.com/hendrycks/imagenet-r",
    "sketch": "ImageNet-Sketch.zip from github.com/HaohanWang/ImageNet-Sketch",
    "c": "noise.tar, blur.tar, weather.tar and digital.tar from github.com/hendrycks/robustness",
}
_RESTRICTED = ("a", "r")
_logger = logging.getLogger("mambaout_jax")


@dataclasses.dataclass(frozen=True)
class Suite:
    """Images, the classes that compete for them, and the right answers.

    Attributes:
        source: the images; their labels are indices of rows of `answers`.
        answers: the right classes for each label, padded with -1; images without any right class
            do not count.
        classes: the classes whose logits compete, in ascending order.
        notes: how the copy differs from the published set.
    """

    source: Source
    answers: Int[np.ndarray, "labels most"]
    classes: Int[np.ndarray, "competing"]
    notes: tuple[str, ...] = ()


def find_suites(
    root: str | Path, names: Sequence[str] = SUITES, channels: int = 3
) -> tuple[dict[str, Callable[[], Suite]], dict[str, str]]:
    """The suites that a folder holds, not yet opened, and how to obtain those that it does not.

    Args:
        root: the folder; its layout is described at the top of this file.
        names: the suites to look for, members of `SUITES`.
        channels: 1 decodes to greyscale, 3 to RGB.

    Returns:
        Functions that open a suite, by name ("c" as one "c/<corruption>/<severity>" each), and a
        sentence for each absent suite. Opening a suite lists its files; it raises ValueError if
        their layout is wrong.

    Raises:
        ValueError: a name is not in `SUITES`, or imagenet-c does not hold any corruption.
        FileNotFoundError: `root` is not a folder, or holds none of these suites.
    """
    root = Path(root).expanduser()
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        raise ValueError(f"there is no suite {', '.join(unknown)!r}; there are {', '.join(SUITES)}")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; give one that holds {', '.join(map(_place, SUITES))}, or some"
        )
    present: dict[str, Callable[[], Suite]] = {}
    for name in names:
        present |= _find(root, name, channels)
    absent = {
        name: f"{root / _place(name)} is not there; it is made from {_ORIGINS[name]}"
        for name in names
        if not any(key.split("/")[0] == name for key in present)
    }
    if not present:
        raise FileNotFoundError(
            f"{root} holds none of {', '.join(names)}: " + "; ".join(absent.values())
        )
    return present, absent


def _place(name: str) -> str:
    return {"val": "imagenet", "real": "real.json"}.get(name) or _FOLDERS[name]


def _find(root: Path, name: str, channels: int) -> dict[str, Callable[[], Suite]]:
    """The parts of one suite that are there, by key."""
    if name in ("val", "real"):
        imagenet = _imagenet_root(root)
        if imagenet is None or (name == "real" and not (root / "real.json").is_file()):
            return {}
        if name == "val":
            return {name: partial(_open_val, imagenet, channels)}
        return {name: partial(_open_real, imagenet, root / "real.json", channels)}
    folder = root / _FOLDERS[name]
    if not folder.is_dir():
        return {}
    if name == "c":
        return _find_corruptions(folder, channels)
    return {name: partial(_open_folders, name, folder, channels)}


def _imagenet_root(root: Path) -> Path | None:
    """The path for `open_imagenet`: the sub-folder, or `root` if that is ImageNet itself."""
    if (root / "imagenet").is_dir():
        return root / "imagenet"
    is_imagenet = prepared_versions(root) or split_folder(root, "validation")
    return root if is_imagenet else None


def _find_corruptions(folder: Path, channels: int) -> dict[str, Callable[[], Suite]]:
    found = {
        f"c/{corruption}/{severity}": partial(
            _open_folders, "c", folder / corruption / str(severity), channels
        )
        for corruption in CORRUPTIONS
        for severity in SEVERITIES
        if (folder / corruption / str(severity)).is_dir()
    }
    others = sorted({path.name for path in folder.iterdir() if path.is_dir()} - {*CORRUPTIONS})
    if not found:
        raise ValueError(
            f"{folder} holds {others or 'nothing'} and none of the corruptions; their folders "
            f"should be directly in it: {folder / CORRUPTIONS[0]}/1/n01440764/"
        )
    if others:
        _logger.warning("not among the corruptions that mCE counts, left out: %s", others)
    return found


def _open_val(root: Path, channels: int) -> Suite:
    source = open_imagenet(str(root), "validation", channels)
    classes = source.num_classes
    if isinstance(source, ImageNetFolders):  # some may be missing
        classes = len({PurePosixPath(file).parts[1] for file in source.files})
    return _suite(source, _notes("val", classes, len(source)))


def _open_folders(name: str, folder: Path, channels: int) -> Suite:
    """A suite that consists of one folder per class."""
    by_name = images_by_class(folder, folder) if name == "v2" else labelled_folders(folder, folder)
    files = {_class_of(folder, key, name): files for key, files in by_name.items()}
    source = _Images(folder, files, channels)
    classes = np.array(sorted(files)) if name in _RESTRICTED else None
    return _suite(source, _notes(name, len(files), len(source)), classes)


def _class_of(folder: Path, key: str, name: str) -> int:
    if name != "v2":
        return LABELS[key]
    if not key.isdecimal() or int(key) >= len(CLASS_NAMES):
        raise ValueError(
            f"{folder} has a folder {key!r}; those of ImageNet-V2 are named by class numbers, "
            f"0 to {len(CLASS_NAMES) - 1}"
        )
    return int(key)


def _open_real(root: Path, labels_file: Path, channels: int) -> Suite:
    answers = _read_answers(labels_file)
    versions = prepared_versions(root)
    source: _RealPrepared | _RealFolders
    if versions:
        source = _RealPrepared(versions[-1], "validation", channels)
    else:
        source = _RealFolders(root, "validation", channels)
    notes = _notes("val", None, len(source))
    if len(answers) != _SIZES["val"][1]:
        notes = (*notes, f"{labels_file.name} has {len(answers):,} lists, not {_SIZES['val'][1]:,}")
    return Suite(source, answers, np.arange(len(CLASS_NAMES)), notes)


def _read_answers(file: Path) -> Int[np.ndarray, "labels most"]:
    """One row for each image of ImageNet's validation set, in the order of the images' numbers."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        flat = {label for row in rows for label in row}
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{file} is not a list of lists of classes: {error}") from error
    if not flat or not all(isinstance(x, int) and 0 <= x < len(CLASS_NAMES) for x in flat):
        raise ValueError(f"{file} must hold lists of classes, 0 to {len(CLASS_NAMES) - 1}")
    answers = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for number, row in enumerate(rows):
        answers[number, : len(row)] = row
    return answers


def _number(name: str) -> int:
    """Index of an image among ReaL's labels, from the number in its file's name."""
    match = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
    if match is None:
        raise ValueError(
            f"{name} has no number; ReaL's labels are for ILSVRC2012_val_00000001.JPEG and so on"
        )
    return int(match[1]) - 1


def _suite(source: Source, notes: tuple[str, ...], classes: np.ndarray | None = None) -> Suite:
    """A suite whose labels are the right classes themselves."""
    every = np.arange(len(CLASS_NAMES))
    return Suite(source, every[:, None], every if classes is None else classes, notes)


def _notes(name: str, classes: int | None, images: int) -> tuple[str, ...]:
    found = {"classes": classes, "images": images}
    published = dict(zip(found, _SIZES[name], strict=True))
    return tuple(
        f"{count:,} {what}, published are {published[what]:,}"
        for what, count in found.items()
        if count is not None and count != published[what]
    )


class _Images:
    """Image files below a folder, by label."""

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(self, root: Path, files: Mapping[int, Iterable[str]], channels: int):
        pairs = [(file, label) for label, members in files.items() for file in members]
        if not pairs:
            raise ValueError(f"{root} holds no images in class folders; unpack it again")
        self._root = root
        self._pairs = pairs
        self._channels = channels

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:
        file, label = self._pairs[index]
        return {"image": read_image(self._root / file, self._channels), "label": label}


class _RealFolders(ImageNetFolders):
    """ImageNet's validation set; labels are the images' numbers."""

    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "label": _number(self.files[index])}


class _RealPrepared(PreparedImageNet):
    """ImageNet's validation set as ArrayRecord; labels are the images' numbers."""

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        name = record["file_name"].decode()
        image = decode_image(record["image"], self._channels, f"{name} of {self._folder}")
        return {"image": image, "label": _number(name)}
