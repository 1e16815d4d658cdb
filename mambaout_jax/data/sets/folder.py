# SPDX-License-Identifier: Apache-2.0
"""Images in one sub-folder per class: the splits, the labels, and what is wrong with a folder."""

import hashlib
import os
from pathlib import Path

import numpy as np

from mambaout_jax.data.sets.identity import fingerprint
from mambaout_jax.data.sets.image_files import MAX_PIXELS, read_image
from mambaout_jax.data.sets.listing import (
    IMAGE_SUFFIXES,
    TRAINING_FOLDERS,
    VALIDATION_FOLDERS,
    holds_splits_only,
    images_by_class,
    is_image,
    listed,
    split_folder,
)

_ByClass = dict[str, list[str]]


class ImageFolder:
    """Images in one sub-folder per class, at any depth inside it (`listing` says which files).

    If `root` holds a training and a validation folder (`listing.split_folder`), these are the
    splits. Otherwise a fixed share of every class is held out: the files whose paths have the
    lowest hashes, so that the split does not depend on a seed and hardly changes when files are
    added. Each class keeps at least one image in both splits.

    Labels number the class names in sorted order.

    Args:
        root: the folder.
        split: "train" or "validation".
        validation_fraction: share of each class to hold out, if `root` has no splits of its own.
            With 1 nothing is trained on: there may be a single class, classes may be empty, and
            the training folder may be missing.
        channels: 1 decodes to greyscale, 3 to RGB (`read_image`).
        decoder: "pillow" or "opencv" (`read_image`).
        max_pixels: height times width of the largest image that is read.

    Attributes:
        files: paths of the images, relative to `root`, with "/" on every system.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: `root` is not a folder of at least two classes, the classes of its two splits
            differ, a class or a split would be empty, or links lead from one class into another.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        validation_fraction: float,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._root = Path(root).expanduser()
        self._channels, self._decoder, self._max_pixels = channels, decoder, max_pixels
        wanted = "set --config.data.path to a folder that holds one sub-folder of images per class"
        if not self._root.exists():
            raise FileNotFoundError(f"data.path={root} does not exist; {wanted}")
        if not self._root.is_dir():
            raise ValueError(f"data.path={root} is a file; {wanted}")
        files = _splits(self._root, validation_fraction)[split]
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
                f"holds {TRAINING_FOLDERS[0]}/ and {VALIDATION_FOLDERS[0]}/ with images"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        path = self._root / self.files[index]
        image = read_image(path, self._channels, self._decoder, self._max_pixels)
        return {"image": image, "label": int(self._labels[index])}

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`."""
        counts = np.bincount(self._labels, minlength=self.num_classes)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`."""
        return fingerprint(self.files, self._labels.tolist())


def _splits(root: Path, validation_fraction: float) -> dict[str, _ByClass]:
    """The files of both splits, by class."""
    only = holds_splits_only(root)
    train, validation = (
        split_folder(root, split) if only or split_folder(root, "train") else None
        for split in ("train", "validation")
    )
    if train and validation:
        return _splits_from_folders(root, train, validation)
    if validation and validation_fraction == 1:
        return {"train": {}, "validation": images_by_class(root, validation)}
    lonely = validation or (train if only else None)
    if lonely:
        missing = TRAINING_FOLDERS if validation else VALIDATION_FOLDERS
        raise ValueError(
            f"{root} holds {lonely.name}/ and no folder for the other split; call it one of "
            f"{', '.join(missing)}, or give a folder with a sub-folder per class"
        )
    return _splits_by_hash(root, validation_fraction)


def _splits_from_folders(root: Path, train: Path, validation: Path) -> dict[str, _ByClass]:
    of_train, of_validation = (images_by_class(root, folder) for folder in (train, validation))
    _check_classes(train, of_train)
    unknown = of_validation.keys() - of_train.keys()
    if unknown:
        raise ValueError(
            f"{train.name}/ and {validation.name}/ of {root} have different classes: only in "
            f"{train.name}/: {sorted(of_train.keys() - of_validation.keys())}; only in "
            f"{validation.name}/: {sorted(unknown)}; give both the same sub-folders"
        )
    of_validation = {name: of_validation.get(name, []) for name in of_train}
    return {"train": of_train, "validation": of_validation}


def _splits_by_hash(root: Path, fraction: float) -> dict[str, _ByClass]:
    by_class = images_by_class(root, root)
    _check_classes(root, by_class, to_train_on=fraction < 1)
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


def _check_classes(folder: Path, by_class: _ByClass, to_train_on: bool = True) -> None:
    """Raises ValueError without images in classes; training needs two classes, all filled."""
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
    if not to_train_on:
        return
    if len(by_class) == 1:
        (name,) = by_class
        raise ValueError(
            f"{folder} has only one class, {name!r}; classification needs two or more sub-folders"
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise ValueError(
            f"classes without images in {folder}: {listed(empty)}; add images to these sub-folders "
            "or remove them"
        )
