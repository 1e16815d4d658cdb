# SPDX-License-Identifier: Apache-2.0
"""COCO 2017 and other sets in its form: images in folders, or prepared as ArrayRecord.

A set has `annotations/instances_train2017.json` and `instances_val2017.json`, with the images in
`train2017/` and `val2017/`. Other sets may leave out the year or have another, and other
categories. Labels number the categories in the order of their ids, of which COCO's 80 leave gaps.

What is trained on is what mmdet 3.3.0 trains on (`CocoDataset.parse_data_info`, `filter_data`).
"""

import abc
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from mambaout_jax.data.sets.annotation_columns import load_columns
from mambaout_jax.data.sets.annotations import Annotations, read_annotations
from mambaout_jax.data.sets.coco_layout import (
    MANIFEST,
    PREPARE,
    PREPARED,
    check_images,
    check_same_categories,
    shards_of,
    split_files,
    wanted,
)
from mambaout_jax.data.sets.image_files import MAX_PIXELS, Decoded, decode_image, read_image
from mambaout_jax.data.sets.records import Records

SHORTEST_SIDE = 32  # pixels: images that are shorter are not trained on

_logger = logging.getLogger("mambaout_jax")


class CocoImages(abc.ABC):
    """Images with the boxes and masks of their objects (`sources.DetectionImages`).

    Crowds, boxes outside the image, those less than a pixel wide or high, areas of 0 and masks
    without a polygon are left out of the examples; boxes are clipped to the image. For training,
    so are images that no annotation names, or whose shorter side is below 32 pixels. Evaluation
    takes all images, and `ground_truth` all annotations.

    Args:
        annotations: of the split.
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Raises:
        ValueError: no image is left. On access: an image has not the size that its annotations
            are for.
    """

    def __init__(
        self,
        annotations: Annotations,
        split: str,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._annotations, self._split = annotations, split
        self._reading = channels, decoder, max_pixels
        self._usable = ~np.logical_or.reduce([annotations.crowd, *_faults(annotations).values()])
        sizes = annotations.image_sizes
        self._images = np.arange(len(sizes))
        if split == "train":
            named = np.diff(annotations.first) > 0
            self._images = np.flatnonzero(named & (sizes.min(1) >= SHORTEST_SIDE))
        if not len(self._images):
            raise ValueError(
                f"{annotations.file} has no image to train on: each has no annotations, or a side "
                f"of less than {SHORTEST_SIDE} pixels"
            )
        self.class_names = annotations.class_names
        self.num_classes = len(annotations.class_names)
        self.category_ids = annotations.category_ids
        self.image_sizes: Int32[np.ndarray, "N 2"] = sizes[self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        annotations, image = self._annotations, int(self._images[index])
        height, width = annotations.image_sizes[image].tolist()
        decoded = self._decode(image)
        found = decoded.shape[:2] if isinstance(decoded, np.ndarray) else decoded.size[::-1]
        if tuple(found) != (height, width):
            raise ValueError(self._other_size(image, found))
        start, stop = annotations.first[image : image + 2]
        rows = start + np.flatnonzero(self._usable[start:stop])
        corner, sides = np.split(annotations.boxes[rows], 2, axis=1)
        boxes = np.concatenate([corner, corner + sides], 1)
        return {
            "image": decoded,
            "boxes": boxes.clip(0, (width, height) * 2).astype(np.float32),
            "labels": annotations.labels[rows],
            "masks": annotations.masks.bitmaps(rows, height, width),
            "image_id": int(annotations.image_ids[image]),
        }

    def ground_truth(self) -> dict[str, Any]:
        """Images, annotations and categories as in COCO's JSON, of the images that are here."""
        return self._annotations.to_json(self._images)

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`; an image counts for each class that it has objects of."""
        annotations = self._annotations
        pairs = annotations.images_of() * self.num_classes + annotations.labels
        labels = np.unique(pairs[self._usable]) % self.num_classes
        counts = np.bincount(labels, minlength=self.num_classes)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`; boxes and masks count, too."""
        return fingerprint_of(self._annotations)

    @abc.abstractmethod
    def _decode(self, image: int) -> Decoded:
        """Image number `image` of the annotations."""

    def _other_size(self, image: int, found: tuple[int, ...]) -> str:
        height, width = self._annotations.image_sizes[image].tolist()
        turned = tuple(found) == (width, height)
        cause = (
            "an orientation in its EXIF block may turn it: save the image without one"
            if turned
            else "give the images that the annotations were made on"
        )
        return (
            f"{self._annotations.file_name(image)} has {found[0]} x {found[1]} pixels (height x "
            f"width), and {self._annotations.file} says {height} x {width}; {cause}"
        )


class CocoFolders(CocoImages):
    """A set whose images are files.

    Args:
        file: annotations, as `read_annotations` takes them.
        folder: where the images are that the file names.
        split, channels, decoder, max_pixels: see `CocoImages`.

    Raises:
        FileNotFoundError: images are missing from `folder`.
        ValueError: as `read_annotations` and `CocoImages`.
    """

    def __init__(
        self,
        file: Path,
        folder: Path,
        split: str,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._folder = folder
        super().__init__(read_annotations(file), split, channels, decoder, max_pixels)
        check_images(self._annotations, folder)

    def _decode(self, image: int) -> Decoded:
        return read_image(self._folder / self._annotations.file_name(image), *self._reading)


class PreparedCoco(CocoImages):
    """A set that `mambaout prepare coco` wrote.

    Processes that are handed one open the same files again, and share their memory.

    Args:
        folder: what was prepared, such as DIR/coco_instances/1.0.0.
        split, channels, decoder, max_pixels: see `CocoImages`.

    Raises:
        ModuleNotFoundError: array_record is not installed.
        FileNotFoundError: the split or some of its files are missing.
        ValueError: the files are damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        channels: int = 3,
        decoder: str = "pillow",
        max_pixels: int = MAX_PIXELS,
    ):
        self._folder = folder
        shards = shards_of(folder, split)
        super().__init__(load_columns(folder / split), split, channels, decoder, max_pixels)
        self._records = Records(shards, PREPARE)
        images = len(self._annotations.image_ids)
        if len(self._records) != images:
            raise ValueError(
                f"the {split} shards of {folder} hold {len(self._records):,} images and its "
                f"annotations {images:,}; prepare the data again: {PREPARE}"
            )

    def __reduce__(self):
        return PreparedCoco, (self._folder, self._split, *self._reading)

    def _decode(self, image: int) -> Decoded:
        name = f"{self._annotations.file_name(image)} of {self._folder}"
        return decode_image(self._records[image], self._reading[0], name, *self._reading[1:])


def open_coco(
    path: str,
    split: str,
    channels: int = 3,
    decoder: str = "pillow",
    max_pixels: int = MAX_PIXELS,
) -> CocoFolders | PreparedCoco:
    """Opens a split; logs how many annotations and images are not trained on, and why.

    Args:
        path: folder with annotations/ and the folders of images, or what `mambaout prepare` wrote.
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: something is missing or unsuitable, or
            the two splits have different categories; the message says where and what to do.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data.path={path} {what}; {wanted(root)}")
    prepared = root / PREPARED
    if (prepared / MANIFEST).is_file():
        source = PreparedCoco(prepared, split, channels, decoder, max_pixels)
    elif prepared.with_name(f"{prepared.name}.incomplete").exists():
        raise FileNotFoundError(
            f"the preparation of {prepared} is not finished; run the command that began it again, "
            f"it resumes: {PREPARE}"
        )
    else:
        file, folder = split_files(root, split)
        check_same_categories(root)
        source = CocoFolders(file, folder, split, channels, decoder, max_pixels)
    _report(source._annotations, split, len(source))
    return source


def fingerprint_of(annotations: Annotations) -> str:
    """SHA-256 of what is trained on and evaluated with, in its order."""
    masks = annotations.masks
    digest = hashlib.sha256(json.dumps(annotations.category_ids).encode())
    for column in (
        annotations.image_ids, annotations.file_names, annotations.image_sizes,
        annotations.first, annotations.labels, annotations.boxes, annotations.areas,
        annotations.crowd, masks.kinds, masks.exact, masks.starts, masks.parts, masks.lengths,
        masks.words,
    ):  # fmt: skip
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _faults(annotations: Annotations) -> dict[str, Bool[np.ndarray, "A"]]:
    """By what is wrong, which annotations an example leaves out; crowds are no fault."""
    x, y, width, height = annotations.boxes.T
    limits = annotations.image_sizes[annotations.images_of()]
    across = np.minimum(x + width, limits[:, 1]) - np.maximum(x, 0)
    down = np.minimum(y + height, limits[:, 0]) - np.maximum(y, 0)
    small = (width < 1) | (height < 1) | (annotations.areas <= 0)
    return {
        "a side of less than a pixel or an area of 0": small,
        "a box outside of the image": ~small & ((across <= 0) | (down <= 0)),
        "a mask without a polygon": annotations.masks.part_counts() == 0,
    }


def _report(annotations: Annotations, split: str, count: int) -> None:
    for fault, wrong in _faults(annotations).items():
        wrong &= ~annotations.crowd
        if wrong.any():
            _logger.warning(
                "%s: %s annotations are not trained on as they have %s, the first: annotation %d; "
                "evaluation counts them",
                annotations.file,
                f"{wrong.sum():,}",
                fault,
                annotations.ids[wrong][0],
            )
    left_out = len(annotations.image_ids) - count
    if left_out:
        _logger.info(
            "%s: %s of %s images are not trained on: they have no annotations, or a side of less "
            "than %d pixels",
            annotations.file,
            f"{left_out:,}",
            f"{len(annotations.image_ids):,}",
            SHORTEST_SIDE,
        )
