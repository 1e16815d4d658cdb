# SPDX-License-Identifier: Apache-2.0
"""Detections of a whole set: kept as arrays while it is read, written in COCO's form at the end.

A partial result of a batch has rows of images, those of a whole set rows of detections:

    seen        the images of the set that were looked at, by their place in it
    index       of each detection, the place of its image in the set
    image_id    the number of its image in the ground truth
    box         x1 y1 x2 y2 in pixels of the original image
    score       in [0, 1]
    label       class
    mask        28 x 28 probabilities, uint8 for their 255-fold

5,000 images with 100 detections each have 400 MB of masks, which is the bulk of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from pycocotools import mask as rle

from mambaout_jax.data.sets.sources import DetectionImages
from mambaout_jax.heads.mask import paste_mask, paste_masks
from mambaout_jax.metrics.coco import encode_window

Rows = dict[str, Any]

SURE = 0.5  # probability from which a detection is drawn, and counted among mistakes


def rows_of_batch(found: Mapping[str, Array], batch: Mapping[str, Array]) -> Rows:
    """The partial result of a batch; traced.

    Args:
        found: `boxes` in pixels of the resized image, `scores`, `labels` (-1 in rows without a
            detection) and `masks` of each image, as a detector gives them.
        batch: with `scale` (B, 2) in y and x, `index`, `image_id` and `mask`. What only fills a
            batch up gets the place -1.
    """
    counts = batch["mask"]
    scale = jnp.tile(batch["scale"][:, ::-1], (1, 2))[:, None]  # (B, 1, 4): x y x y
    boxes = found["boxes"] / jnp.where(counts[:, None, None], scale, 1)
    return {
        "seen": jnp.where(counts, batch["index"], -1),
        "image_id": batch["image_id"],
        "box": boxes,
        "score": found["scores"],
        "label": jnp.where(counts[:, None], found["labels"], -1),
        "mask": jnp.round(255 * found["masks"]).astype(jnp.uint8),
    }


def merge_rows(partials: Sequence[Rows]) -> Rows:
    """Rows of detections, of partial results of either kind; padding is left out."""
    flat = [rows if "index" in rows else _flat(rows) for rows in partials]
    return {name: np.concatenate([rows[name] for rows in flat]) for name in flat[0]}


def _flat(rows: Rows) -> Rows:
    image, place = np.nonzero(rows["label"] >= 0)
    columns = {name: rows[name][image, place] for name in ("box", "score", "label", "mask")}
    seen = rows["seen"]
    of_image = {"index": seen[image], "image_id": rows["image_id"][image]}
    return {"seen": seen[seen >= 0], **of_image, **columns}


def check_all_seen(rows: Rows, count: int) -> None:
    """Raises RuntimeError unless each image of the set was looked at exactly once."""
    times = np.bincount(rows["seen"], minlength=count)
    if len(times) != count or (times != 1).any():
        raise RuntimeError(
            f"of {count:,} images {int((times == 0).sum()):,} were not looked at and "
            f"{int((times > 1).sum()):,} more than once; average precision would be another's"
        )


def coco_detections(rows: Rows, source: DetectionImages) -> list[dict[str, Any]]:
    """What COCO compares, in the order of the set and, in an image, as found.

    Args:
        rows: of a whole set.
        source: the set, for the sizes of its images and the numbers of its categories.
    """
    detections = []
    for index, chosen in by_image(rows):
        height, width = map(int, source.image_sizes[index])
        for row in chosen:
            (down, across), values = paste_mask(
                rows["mask"][row].astype(np.float32) / 255, rows["box"][row], (height, width)
            )
            corner = down.start, across.start
            x1, y1, x2, y2 = rows["box"][row].tolist()
            detections.append(
                {
                    "image_id": int(rows["image_id"][row]),
                    "category_id": source.category_ids[int(rows["label"][row])],
                    "score": float(rows["score"][row]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": encode_window(values >= 0.5, corner, (height, width)),
                }
            )
    return detections


def by_image(rows: Rows) -> Iterator[tuple[int, Int[np.ndarray, "n"]]]:
    """The place of each image that has detections, and the rows of these."""
    order = np.argsort(rows["index"], kind="stable")
    places, starts = np.unique(rows["index"][order], return_index=True)
    ends = [*starts[1:], len(order)]
    for place, start, end in zip(places.tolist(), starts, ends[: len(starts)], strict=True):
        yield place, order[start:end]


def pasted(
    rows: Rows, chosen: Int[np.ndarray, "n"], size: Int[np.ndarray, "2"]
) -> Bool[np.ndarray, "n H W"]:
    """Masks of detections in the pixels of their image, of a height and a width."""
    probabilities = rows["mask"][chosen].astype(np.float32) / 255
    height, width = map(int, size)
    return paste_masks(probabilities, rows["box"][chosen].astype(np.float32), (height, width))


class Mistakes(NamedTuple):
    """What is wrong about an image, of objects found with a probability of `SURE` or more.

    Attributes:
        index: place of the image in the set.
        found: rows of what was found.
        missed: boxes (n, 4), x1 y1 x2 y2, and labels (n,) of objects that were not.
        wrong: how many were found that are none, or of another class.
    """

    index: int
    found: Int[np.ndarray, "n"]
    missed: tuple[Float[np.ndarray, "m 4"], Int[np.ndarray, "m"]]
    wrong: int


def worst_images(rows: Rows, source: DetectionImages, count: int) -> list[Mistakes]:
    """The images with most mistakes, in falling order; those without any are left out.

    An object is found by the surest detection of its class that overlaps it by half or more. Crowds
    are no objects, and what is found in one counts as wrong.
    """
    truth = source.ground_truth()
    labels = {number: label for label, number in enumerate(source.category_ids)}
    places = {row["id"]: place for place, row in enumerate(truth["images"])}
    objects: dict[int, list] = {place: [] for place in places.values()}
    for row in truth["annotations"]:
        if not row.get("iscrowd"):
            objects[places[row["image_id"]]].append((row["bbox"], labels[row["category_id"]]))
    found = dict(by_image(rows))
    none = np.zeros(0, np.int64)
    each = [_mistakes(rows, place, found.get(place, none), objects[place]) for place in objects]
    wrong = [mistakes for mistakes in each if mistakes.wrong + len(mistakes.missed[1])]
    return sorted(wrong, key=lambda m: -m.wrong - len(m.missed[1]))[:count]


def _mistakes(rows: Rows, place: int, found: Int[np.ndarray, "n"], objects: list) -> Mistakes:
    found = found[rows["score"][found] >= SURE]
    boxes: Any = np.asarray([box for box, _ in objects], np.float64).reshape(-1, 4)
    labels = np.asarray([label for _, label in objects], np.int64)
    theirs = _with_sides(rows["box"][found], np.subtract)
    overlaps = np.reshape(
        rle.iou(theirs, boxes, np.zeros(len(boxes), np.uint8)), (len(found), len(boxes))
    )
    overlaps = np.where(rows["label"][found][:, None] == labels[None], overlaps, 0)
    missed, wrong = np.ones(len(labels), bool), 0
    for overlap in overlaps:  # the surest first, as a detector orders them
        free = np.where(missed, overlap, 0)
        if free.max(initial=0) >= 0.5:
            missed[free.argmax()] = False
        else:
            wrong += 1
    return Mistakes(place, found, (_with_sides(boxes[missed], np.add), labels[missed]), wrong)


def _with_sides(boxes: Float[np.ndarray, "n 4"], change: np.ufunc) -> Float[np.ndarray, "n 4"]:
    """Second corners for sides by `np.add`, sides for second corners by `np.subtract`."""
    return np.concatenate((boxes[:, :2], change(boxes[:, 2:], boxes[:, :2])), axis=1)
