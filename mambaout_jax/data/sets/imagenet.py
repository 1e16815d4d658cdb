# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1k (ILSVRC 2012), prepared as ArrayRecord or stored in class folders.

Both give the same images with the same labels. A label is the index of a synset in `SYNSETS`, even
if a folder holds only some of the thousand classes.
"""

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from mambaout_jax.data.sets.identity import fingerprint
from mambaout_jax.data.sets.image_files import MAX_PIXELS, decode_image, read_image
from mambaout_jax.data.sets.listing import (
    TRAINING_FOLDERS,
    VALIDATION_FOLDERS,
    images_by_class,
    is_image,
    split_folder,
)
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS

DATASET = "imagenet2012"  # its name in TensorFlow Datasets
SPLIT_SIZES = {"train": 1_281_167, "validation": 50_000}
LABELS = {synset: label for label, synset in enumerate(SYNSETS)}

_PREPARE = (
    "mambaout prepare imagenet --train-tar ILSVRC2012_img_train.tar "
    "--val-tar ILSVRC2012_img_val.tar --out DIR"
)
_logger = logging.getLogger("mambaout_jax")


class PreparedImageNet:
    """ImageNet as ArrayRecord, written by `mambaout prepare imagenet` or TensorFlow Datasets.

    It is read with `tensorflow_datasets`, which does not need TensorFlow for that.

    Args:
        folder: one version of the data set, for example `imagenet2012/5.1.0`.
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Raises:
        ModuleNotFoundError: tensorflow_datasets or array_record is not installed.
        FileNotFoundError: the split or some of its shards are missing.
        ValueError: the records have a different format or different labels.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(
        self,
        folder: Path,
        split: str,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._folder, self._split = folder, split
        self._channels, self._decoder, self._max_pixels = channels, decoder, max_pixels
        _check_format(folder)
        require_data_packages()
        import tensorflow_datasets as tfds  # optional, and slow to import

        builder: Any = tfds.builder_from_directory(folder)
        if split not in builder.info.splits:
            raise FileNotFoundError(
                f"{folder} holds no {split} split, only {sorted(builder.info.splits)}; prepare "
                f"both archives into another folder: {_PREPARE}"
            )
        shards = builder.info.splits[split].filepaths
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(shards)} {split} shards are missing from {folder}, "
                f"the first: {missing[0]}; copy them again, or prepare the data again: {_PREPARE}"
            )
        if tuple(builder.info.features["label"].names) != SYNSETS:
            raise ValueError(
                f"the labels of {folder} are not ImageNet-1k's synsets in sorted order; prepare "
                f"the data again: {_PREPARE}"
            )
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=decoders)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        name = f"{record['file_name'].decode()} of {self._folder}"
        image = decode_image(record["image"], self._channels, name, self._decoder, self._max_pixels)
        return {"image": image, "label": int(record["label"])}

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`."""
        return dict.fromkeys(SYNSETS)

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`; of what the manifest says of the shards."""
        (split,) = (x for x in _manifest(self._folder)["splits"] if x["name"] == self._split)
        return fingerprint([json.dumps(split, sort_keys=True)], [len(self)])


class ImageNetFolders:
    """ImageNet as image files in a folder per synset: `root`/train/n01440764/n01440764_18.JPEG.

    Args:
        root: folder with `train` and one of `VALIDATION_FOLDERS` (the first that exists is used).
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Attributes:
        files: paths of the images, relative to `root`, with "/" on every system.

    Raises:
        FileNotFoundError: the split has no folder.
        ValueError: the split's folder does not consist of folders of images named after synsets.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(
        self,
        root: Path,
        split: str,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._root = root
        self._channels, self._decoder, self._max_pixels = channels, decoder, max_pixels
        folder = split_folder(root, split)
        if folder is None:
            names = TRAINING_FOLDERS if split == "train" else VALIDATION_FOLDERS
            raise FileNotFoundError(
                f"data.path={root} has no {split} split: none of {', '.join(names)} is a folder "
                f"in it; unpack its images there, or prepare it from the archives: {_PREPARE}"
            )
        by_class = labelled_folders(root, folder)
        self.files = [file for files in by_class.values() for file in files]
        labels = [LABELS[synset] for synset in by_class]
        self._labels = np.repeat(
            np.array(labels, np.int32), [len(files) for files in by_class.values()]
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
        return dict(zip(SYNSETS, counts.tolist(), strict=True))

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`."""
        return fingerprint(self.files, self._labels.tolist())


def open_imagenet(
    path: str,
    split: str,
    channels: int = 3,
    decoder: str = "pillow",
    max_pixels: int = MAX_PIXELS,
) -> PreparedImageNet | ImageNetFolders:
    """Opens a split of ImageNet, with a warning if it has not as many images as ImageNet's.

    Args:
        path: folder with `imagenet2012/<version>/` of ArrayRecord shards (the newest version is
            used), or with `train/` and `val/` that hold a folder of images per synset.
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: something is missing or unsuitable; the
            message says where it was looked for and which command makes it.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data.path={path} {what}; {_wanted(root)}")
    versions = prepared_versions(root)
    if versions:
        source = PreparedImageNet(versions[-1], split, channels, decoder, max_pixels)
    else:
        unfinished = sorted((root / DATASET).glob("*incomplete*"))
        if unfinished:
            raise FileNotFoundError(
                f"the preparation of {unfinished[-1].parent} is not finished; run the command "
                f"that began it again, it resumes: {_PREPARE}"
            )
        if not any(split_folder(root, name) for name in SPLIT_SIZES):
            raise FileNotFoundError(f"data.path={path} holds no ImageNet; {_wanted(root)}")
        source = ImageNetFolders(root, split, channels, decoder, max_pixels)
    if len(source) != SPLIT_SIZES[split]:
        _logger.warning(
            "the %s split of %s has %s images, not ImageNet's %s",
            split,
            root,
            f"{len(source):,}",
            f"{SPLIT_SIZES[split]:,}",
        )
    return source


def prepared_versions(root: Path) -> list[Path]:
    """Folders `root`/imagenet2012/<version> whose preparation is finished, newest version last."""
    found = [file.parent for file in (root / DATASET).glob("*/dataset_info.json")]
    numbers = {folder: folder.name.split(".") for folder in found}
    complete = [folder for folder in found if all(part.isdigit() for part in numbers[folder])]
    return sorted(complete, key=lambda folder: [int(part) for part in numbers[folder]])


def labelled_folders(root: Path, folder: Path) -> dict[str, list[str]]:
    """Sorted image paths relative to `root`, by synset in label order.

    Raises:
        ValueError: there is no class folder, or one that holds no images or is not named after a
            synset.
    """
    by_class = images_by_class(root, folder)
    if not by_class:
        if any(is_image(name) for name in os.listdir(folder)):
            raise ValueError(
                f"the images are directly in {folder}, without their labels; prepare them: "
                f"mambaout prepare imagenet --folder {root} --out DIR, and set "
                "--config.data.path=DIR"
            )
        raise ValueError(f"{folder} is empty; {_wanted(root)}")
    unknown = sorted(by_class.keys() - LABELS.keys())
    if unknown:
        raise ValueError(
            f"{folder} has {len(unknown)} folders that are not synsets of ImageNet-1k: "
            f"{unknown[:5]}; those are named n01440764 ... n15075141. Use "
            "--config.data.source=folder for classes of your own"
        )
    empty = [synset for synset, files in by_class.items() if not files]
    if empty:
        raise ValueError(
            f"{len(empty)} class folders of {folder} hold no images: {empty[:5]}; unpack them "
            "again, or remove them"
        )
    return by_class


def require_data_packages() -> None:
    """Checks that the packages for prepared ImageNet are installed.

    Raises:
        ModuleNotFoundError: one is not; the message says what to install.
    """
    for package in ("array_record", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"prepared ImageNet needs the package {package}, which is not installed: "
                "pip install 'mambaout-jax[data]' (TensorFlow is not needed)"
            )


def _check_format(folder: Path) -> None:
    found = _manifest(folder).get("fileFormat", "tfrecord")
    if found != "array_record":
        raise ValueError(
            f"{folder} holds {found} files, which have no random access; write it as ArrayRecord, "
            f"either from the original archives with another DIR: {_PREPARE}, or where TensorFlow "
            f"is installed: tfds build {DATASET} --file_format=array_record --data_dir=DIR "
            "--manual_dir=<folder with the archives>"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """What TensorFlow Datasets wrote of the set."""
    file = folder / "dataset_info.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(
            f"{file} is damaged ({error}); copy it again, or prepare the data again: {_PREPARE}"
        ) from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} holds no JSON object; prepare the data again: {_PREPARE}")
    return manifest


def _wanted(root: Path) -> str:
    return (
        f"data.source='imagenet' looks for {root}/{DATASET}/<version>/dataset_info.json with "
        f"ArrayRecord shards, and for {root}/train/n01440764/*.JPEG and {root}/val/ likewise. To "
        f"prepare it from the original archives: {_PREPARE.replace('DIR', str(root))}"
    )
