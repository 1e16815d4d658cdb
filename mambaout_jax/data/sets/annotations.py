# SPDX-License-Identifier: Apache-2.0
"""Annotations in COCO's JSON form as columns of numpy: read piece by piece, and checked.

`json.load` would make gigabytes of objects of COCO's training file, in each process. Here they
exist one at a time, and what is kept is 260 MB.
"""

import collections
import dataclasses
import json
import logging
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from mambaout_jax.data.sets.segments import MalformedSegmentError, Segments, SegmentsBuilder

KEYS = ("images", "annotations", "categories")
_NOT_COCO = (
    "so it is no file of COCO's instances: those, such as instances_val2017.json, are an object "
    "with arrays of images, annotations and categories; give such a file"
)
_SPACE = re.compile(r"[ \t\n\r]*")
_scan = json.JSONDecoder().scan_once  # value at a position of a text → value, position after it
_logger = logging.getLogger("mambaout_jax")


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The images, objects and categories of a file, objects in the order of their images.

    Attributes:
        file: what messages call the file.
        class_names, category_ids: by label, in the order of the ids.
        image_ids, file_names, image_sizes: of each image; names in UTF-8, sizes height and width.
        first: objects of image i are rows first[i] to first[i + 1], in the order of the file.
        ids, labels, areas, crowd: of each object; the area is the file's, in pixels.
        boxes: x y width height in pixels, as in the file.
        masks: see `Segments`; those without any part cannot be trained on.
    """

    file: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: Int[np.ndarray, "N"]
    file_names: np.ndarray
    image_sizes: Int32[np.ndarray, "N 2"]
    first: Int[np.ndarray, "firsts"]
    ids: Int[np.ndarray, "A"]
    labels: Int32[np.ndarray, "A"]
    boxes: Float64[np.ndarray, "A 4"]
    areas: Float64[np.ndarray, "A"]
    crowd: Bool[np.ndarray, "A"]
    masks: Segments

    def images_of(self) -> Int[np.ndarray, "A"]:
        """The number of each object's image."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.first))

    def file_name(self, image: int) -> str:
        """The image's path, relative to the folder of images."""
        return self.file_names[image].decode()

    def to_json(self, chosen: Int[np.ndarray, "n"]) -> dict[str, Any]:
        """What the file says of these images, their objects and the categories, in its own form.

        Objects keep their ids, or are counted anew where one has 0, which pycocotools would take
        for an object that nothing was matched with.
        """
        ids = self.ids if self.ids.all() else np.arange(1, len(self.ids) + 1)
        sizes = {image: self.image_sizes[image].tolist() for image in chosen.tolist()}
        images = [
            {
                "id": int(self.image_ids[image]),
                "file_name": self.file_name(image),
                "height": height,
                "width": width,
            }
            for image, (height, width) in sizes.items()
        ]
        objects = [
            {
                "id": int(ids[row]),
                "image_id": int(self.image_ids[image]),
                "category_id": self.category_ids[self.labels[row]],
                "bbox": self.boxes[row].tolist(),
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
                "segmentation": self.masks.segmentation(row, *sizes[image]),
            }
            for image in sizes
            for row in range(self.first[image], self.first[image + 1])
        ]
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": objects, "categories": categories}


def read_annotations(file: Path) -> Annotations:
    """Reads and checks a file such as COCO's instances_train2017.json.

    One warning counts the masks that lose polygons of fewer than three points or of an odd length.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or is truncated, or something in it is wrong; the message
            names the file and the first annotation or image at fault.
    """
    images, objects, categories = _Images(), _Objects(), []
    readers = {"images": images.add, "annotations": objects.add, "categories": categories.append}
    found = set()
    for key, element in _elements(file):
        found.add(key)
        if element is not None:
            try:
                readers[key](element)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
                raise ValueError(_malformed(file, key, element, error)) from error
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise ValueError(f"{file} has no {' and no '.join(map(repr, missing))}, {_NOT_COCO}")
    return _checked(str(file), images, objects, categories)


def read_categories(file: Path, elements: list[Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the classes, in the order of the ids.

    Raises:
        ValueError: they are not categories, or two have the same id or name.
    """
    try:
        numbers = {element["id"]: str(element["name"]) for element in elements}
        if not all(type(number) is int for number in numbers):
            raise TypeError
    except (KeyError, TypeError):
        raise ValueError(
            f'{file}: a category is not like {{"id": 1, "name": "person"}}; correct the file'
        ) from None
    for kind in ("id", "name"):
        _refuse_twice(str(file), f"categories have the {kind}", [e[kind] for e in elements])
    if not numbers:
        raise ValueError(f"{file} lists no categories; add them")
    return tuple(numbers[number] for number in sorted(numbers)), tuple(sorted(numbers))


class _Images:
    """Columns of images."""

    def __init__(self):
        self.ids, self.names, self.sizes = array("q"), [], array("i")

    def add(self, image: dict[str, Any]) -> None:
        self.names.append(image["file_name"].encode())
        self.sizes.extend((image["height"], image["width"]))
        self.ids.append(image["id"])


class _Objects:
    """Columns of annotations."""

    def __init__(self):
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.masks = SegmentsBuilder()

    def add(self, annotation: dict[str, Any]) -> None:
        box = annotation["bbox"]
        if len(box) != 4:
            raise ValueError(f"its bbox has {len(box)} numbers, not 4")
        self.masks.add(annotation["segmentation"])
        self.boxes.extend(box)
        self.areas.append(annotation["area"])
        self.crowd.append(annotation.get("iscrowd", 0))
        self.images.append(annotation["image_id"])
        self.categories.append(annotation["category_id"])
        self.ids.append(annotation["id"])


def _elements(file: Path) -> Iterator[tuple[str, Any]]:
    """Each element of the arrays that `KEYS` name; (key, None) where an array begins."""
    try:
        text = file.read_text(encoding="utf-8")
        if text.lstrip()[:1] == "[":
            raise ValueError(f"{file} is a JSON array, {_NOT_COCO}")
        position = _after(text, 0, "{")
        while text[position] != "}":
            key, position = _scan(text, position)
            position = _after(text, position, ":")
            if key in KEYS:
                if text[position] != "[":
                    raise ValueError(f"the {key!r} of {file} are no array, {_NOT_COCO}")
                yield key, None
                position = _after(text, position, "[")
                while text[position] != "]":
                    element, position = _scan(text, position)
                    yield key, element
                    position = _after(text, position, ",", or_before="]")
                position += 1
            else:
                _, position = _scan(text, position)
            position = _after(text, position, ",", or_before="}")
    # What the scanner raises where a value is expected: StopIteration, or at the end IndexError.
    except (StopIteration, IndexError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} is truncated, or is no JSON in UTF-8 ({type(error).__name__}: {error}); copy "
            "or download it again"
        ) from error


def _after(text: str, position: int, mark: str, or_before: str = "") -> int:
    """The position of what follows a mark, or, if it is there instead, that of `or_before`."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if or_before and text[position] == or_before:
        return position
    if text[position] != mark:
        raise json.JSONDecodeError(f"{mark!r} is expected", text, position)
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def _malformed(file: Path, key: str, element: Any, error: Exception) -> str:
    kind = "image" if key == "images" else "annotation"
    number = element.get("id") if isinstance(element, dict) else None
    what = f"{kind} {number}" if number is not None else f"an {kind}"
    if isinstance(error, KeyError):
        return (
            f"{file}: {what} has no {error}; a set for detection with masks needs it in each: "
            "correct the file, or give the one of the instances"
        )
    return f"{file}: {what} cannot be used ({error}); correct or remove it"


def _checked(file: str, images: _Images, objects: _Objects, categories: list) -> Annotations:
    class_names, category_ids = read_categories(Path(file), categories)
    image_ids, ids = np.array(images.ids, np.int64), np.array(objects.ids, np.int64)
    sizes = np.array(images.sizes, np.int32).reshape(-1, 2)
    _refuse_twice(file, "images have the id", image_ids)
    _refuse_twice(file, "annotations have the id", ids)
    for count, kind in ((len(image_ids), "images"), (len(ids), "annotations")):
        if not count:
            raise ValueError(f"{file} lists no {kind}: there is nothing in it to train or evaluate")
    if (sizes <= 0).any():
        image = image_ids[(sizes <= 0).any(1)][0]
        raise ValueError(f"{file}: image {image} has no height or no width; correct the file")
    try:
        masks = objects.masks.finish()
    except MalformedSegmentError as error:
        raise ValueError(
            f"{file}: annotation {ids[error.row]} cannot be used ({error}); correct or remove it"
        ) from error
    of_image = _places(file, ids, np.array(objects.images), image_ids, "the image")
    labels = _places(file, ids, np.array(objects.categories), category_ids, "the category")
    boxes = np.array(objects.boxes).reshape(-1, 4)
    areas = np.array(objects.areas)
    _check_boxes(file, ids, boxes, areas)
    _check_run_sizes(file, ids, np.array(objects.masks.sizes), sizes[of_image])
    _warn_of_polygons(file, ids[objects.masks.discarded])
    order = np.argsort(of_image, kind="stable")
    counts = np.bincount(of_image, minlength=len(image_ids))
    return Annotations(
        file, class_names, category_ids, image_ids, np.array(images.names), sizes,
        np.concatenate([[0], np.cumsum(counts)]), ids[order], labels[order].astype(np.int32),
        boxes[order], areas[order], np.array(objects.crowd)[order] != 0, masks.take(order),
    )  # fmt: skip


def _refuse_twice(file: str, what: str, values: Any) -> None:
    if len(np.unique(values)) < len(values):
        value, times = collections.Counter(list(values)).most_common(1)[0]
        raise ValueError(f"{file}: {times} {what} {value}; give each its own")


def _places(file: str, ids: Any, values: Any, known: Any, what: str) -> Int[np.ndarray, "A"]:
    """Where each value stands among those that are known."""
    known = np.asarray(known)
    order = np.argsort(known)
    place = order[np.searchsorted(known[order], values).clip(max=len(known) - 1)]
    wrong = known[place] != values
    if wrong.any():
        raise ValueError(
            f"{file}: annotation {ids[wrong][0]} names {what} {values[wrong][0]}, which the file "
            f"does not list ({wrong.sum():,} such annotations in all); add it, or remove them"
        )
    return place


def _check_boxes(file: str, ids: Any, boxes: np.ndarray, areas: np.ndarray) -> None:
    finite = np.isfinite(boxes).all(1) & np.isfinite(areas)
    for wrong, why in (
        (~finite, "numbers that are not finite"),
        ((boxes[:, 2:] < 0).any(1), "a negative width or height"),
    ):
        if wrong.any():
            row = np.flatnonzero(wrong)[0]
            raise ValueError(
                f"{file}: annotation {ids[row]} has {why} (bbox {boxes[row].tolist()}, x y width "
                f"height; area {areas[row]}; {wrong.sum():,} such annotations in all); correct or "
                "remove them"
            )


def _check_run_sizes(file: str, ids: Any, of_runs: np.ndarray, of_images: np.ndarray) -> None:
    wrong = (of_runs != of_images).any(1) & of_runs.any(1)
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"{file}: the mask of annotation {ids[row]} is for {of_runs[row][0]} x "
            f"{of_runs[row][1]} pixels (height x width) and its image has {of_images[row][0]} x "
            f"{of_images[row][1]} ({wrong.sum():,} such annotations in all); correct or remove them"
        )


def _warn_of_polygons(file: str, ids: Int[np.ndarray, "n"]) -> None:
    if len(ids):
        _logger.warning(
            "%s: %s annotations have polygons of fewer than three points or of an odd length, "
            "which are left out of their masks, the first: annotation %d",
            file,
            f"{len(ids):,}",
            ids[0],
        )
