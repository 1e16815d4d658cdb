# SPDX-License-Identifier: Apache-2.0
"""Average precision of detections as COCO counts it, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KINDS = ("bbox", "segm")

# In the order of `COCOeval.summarize`.
FIGURES: tuple[str, ...] = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)

_ALL_AREAS, _HUNDRED = 0, -1  # objects of all sizes, 100 detections of a class in an image


class CocoResult(NamedTuple):
    """What an evaluation counts.

    Attributes:
        figures: the twelve, by the names of `FIGURES`, in [0, 1]; -1 where no object counts.
        precision: at 10 overlaps (0.5, 0.55, … 0.95), 101 recalls (0, 0.01, … 1) and each class;
            -1 for classes without objects.
        category_ids: of the K classes, rising.
    """

    figures: dict[str, float]
    precision: Float[np.ndarray, "10 101 K"]
    category_ids: tuple[int, ...]

    def per_class(self) -> Float[np.ndarray, "K"]:
        """Average precision of each class, NaN for one without objects."""
        absent = (self.precision < 0).all(axis=(0, 1))
        return np.where(absent, np.nan, self.precision.mean(axis=(0, 1)))


def coco_metrics(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str = "bbox"
) -> dict[str, float]:
    """The twelve figures of COCO: average precision and recall, in [0, 1].

    `ap` is the mean over the overlaps 0.5, 0.55, … 0.95 and the classes that have objects, `ap50`
    and `ap75` are those at one overlap, `ap_small` (below 32² pixels), `ap_medium` and `ap_large`
    (above 96²) those of objects of a size, `ar1`, `ar10` and `ar100` the recall with so many
    detections of a class in an image. A figure without any object is -1.

    Args:
        ground_truth: as in COCO's JSON files: `images`, `annotations`, `categories`.
        detections: as COCO takes them: `image_id`, `category_id`, `score` and, by kind, `bbox` (x,
            y, width, height) or `segmentation`, an RLE. Masks are small, medium or large by their
            own area, also where a detection has a box besides, whose area pycocotools would take.
        kind: overlap of boxes ("bbox") or of masks ("segm").

    Raises:
        ValueError: another kind, or a detection is of an image or a category that is unknown.
    """
    return evaluate_coco(ground_truth, detections, kind).figures


def evaluate_coco(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str = "bbox"
) -> CocoResult:
    """As `coco_metrics`, with the precision at each recall."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; allowed are {', '.join(map(repr, KINDS))}")
    _check(ground_truth, detections, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        evaluation = COCOeval(*_indexed(ground_truth, detections, kind), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(FIGURES, map(float, evaluation.stats), strict=True))
    precision = evaluation.eval["precision"][:, :, :, _ALL_AREAS, _HUNDRED]
    return CocoResult(figures, precision, tuple(evaluation.params.catIds))


def _check(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str
) -> None:
    wanted = {"bbox": "bbox", "segm": "segmentation"}[kind]
    for name, rows in (("image_id", "images"), ("category_id", "categories")):
        known = {row["id"] for row in ground_truth[rows]}
        unknown = next((found[name] for found in detections if found[name] not in known), None)
        if unknown is not None:
            raise ValueError(
                f"a detection has {name}={unknown!r}, which is not among the {len(known)} "
                f"{rows} of the ground truth; both must use the numbers of the same file"
            )
    without = next((i for i, found in enumerate(detections) if wanted not in found), None)
    if without is not None:
        raise ValueError(
            f"detection {without} has no {wanted!r}, which kind={kind!r} compares; it has "
            f"{sorted(detections[without])}"
        )


def _indexed(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str
) -> tuple[COCO, COCO]:
    """Both sides in pycocotools' form; it writes into annotations, so that it gets copies."""
    truth = COCO()
    # Numbered anew from 1: an object with the number 0 would count as never found.
    rows = enumerate(ground_truth["annotations"], start=1)
    objects = [{"iscrowd": 0, **row, "id": i} for i, row in rows]
    truth.dataset = {**ground_truth, "annotations": objects}
    truth.createIndex()
    keys = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
    found: Any = [{key: row[key] for key in keys} for row in detections]
    if found:
        return truth, truth.loadRes(found)
    nothing = COCO()
    nothing.dataset = {**ground_truth, "annotations": []}
    nothing.createIndex()
    return truth, nothing


def encode_mask(mask: Shaped[np.ndarray, "H W"]) -> dict[str, Any]:
    """The run lengths of a mask in COCO's compressed form, `{"size": [H, W], "counts": text}`."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}


def encode_window(
    window: Bool[np.ndarray, "h w"], corner: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """`encode_mask` of a mask that is nothing outside of a window, in time of the window's size.

    Args:
        window: the part of the mask.
        corner: its first row and column in the image.
        size: (H, W) of the image.
    """
    height, width = size
    columns = np.zeros((window.shape[1], height), bool)
    columns[:, corner[0] : corner[0] + window.shape[0]] = window.T
    padded = np.concatenate(((False,), columns.reshape(-1), (False,)))
    changes = np.flatnonzero(padded[1:] != padded[:-1]) + corner[1] * height
    changes = changes[changes < height * width]  # the last run ends with the image
    counts = np.diff(changes, prepend=0, append=height * width).tolist()
    encoded: Any = rle.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: Any) -> Bool[np.ndarray, "H W"]:
    """The mask of `encode_mask`."""
    return rle.decode(encoded).astype(bool)
