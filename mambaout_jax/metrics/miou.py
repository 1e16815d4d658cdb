# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: mean intersection over union, from counts of pixels over a whole set.

As mmsegmentation's `IoUMetric`: pixels are summed over all images before anything is divided (it is
no mean over images), and a class that occurs neither in labels nor in predictions is left out.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from mambaout_jax.metrics.confusion import check_confusion_matrix, per_class_rows

IGNORED = 255  # label of pixels that do not count


def pixel_confusion(
    labels: Integer[Array, "*S"], predictions: Integer[Array, "*S"], num_classes: int
) -> Int[Array, "K K"]:
    """Counts pixels by label (row) and prediction (column), as int32; traced.

    Args:
        labels: classes; whatever is not in 0..num_classes - 1, such as 255, does not count.
        predictions: classes in 0..num_classes - 1.
    """
    counts = (labels >= 0) & (labels < num_classes)
    cells = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    cells = jnp.where(counts, cells, num_classes**2)
    total = jnp.bincount(cells.reshape(-1), length=num_classes**2 + 1)[:-1]
    return total.reshape(num_classes, num_classes)


class Overlaps(NamedTuple):
    """Attributes:
    iou: (K,) intersection over union of each class in percent; NaN where the union is empty.
    accuracy: (K,) correct pixels over labelled ones in percent; NaN where none is labelled.
    """

    iou: np.ndarray
    accuracy: np.ndarray


def class_overlaps(confusion: np.ndarray) -> Overlaps:
    """What a confusion matrix of pixels, int (K, K), says of each class."""
    confusion = np.asarray(confusion, np.float64)
    correct, labelled = np.diag(confusion), confusion.sum(axis=1)
    union = labelled + confusion.sum(axis=0) - correct
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        return Overlaps(100 * correct / union, 100 * correct / labelled)


def mean_iou(confusion: np.ndarray) -> dict[str, float]:
    """Mean intersection over union of a whole set, and two accuracies, in percent.

    Args:
        confusion: int (K, K), pixels by label (row) and prediction (column), without ignored ones.

    Returns:
        `miou`: mean over classes of I / (label + prediction - I); `macc`: mean over classes of
        I / label; `aacc`: all correct pixels over all labelled ones. A class whose divisor is 0 is
        left out of a mean: one that is predicted and never labelled counts as 0 in `miou` alone.

    Raises:
        ValueError: the matrix is not one of counts, or counts no pixel.
    """
    confusion = np.asarray(confusion)
    check_confusion_matrix(confusion, ("",) * len(confusion))
    if not confusion.any():
        raise ValueError(
            "the confusion matrix counts no pixel: every label is ignored (255); check the labels"
        )
    iou, accuracy = class_overlaps(confusion)
    return {
        "miou": float(np.nanmean(iou)),
        "macc": float(np.nanmean(accuracy)),
        "aacc": float(100 * np.trace(confusion) / confusion.sum()),
    }


def write_class_overlaps_csv(
    confusion: np.ndarray, class_names: Sequence[str], path: str | Path
) -> None:
    """Writes for each class its labelled pixels, IoU, accuracy and what it was most taken for.

    What is NaN or None is left empty.

    Raises:
        ValueError: as of `metrics.confusion.check_confusion_matrix`.
    """
    rows = per_class_rows(confusion, class_names)
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "pixels", "iou", "accuracy", "confused_with"))
        for row, iou in zip(rows, class_overlaps(confusion).iou, strict=True):
            figures = ("" if math.isnan(x) else f"{x:.2f}" for x in (iou, row.accuracy))
            writer.writerow((row.name, row.count, *figures, row.confused_with or ""))
