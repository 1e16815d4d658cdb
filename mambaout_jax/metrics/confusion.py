# SPDX-License-Identifier: Apache-2.0
"""Which class was taken for which: the confusion matrix, and what it says of each class."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> Int[np.ndarray, "K K"]:
    """Counts examples by label (row) and prediction (column), as int64.

    Args:
        labels, predictions: integers (B,) from 0 to num_classes - 1.

    Raises:
        ValueError: the shapes differ or an entry is not a class.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must both be (B,)"
        )
    for name, values in {"labels": labels, "predictions": predictions}.items():
        if values.size and not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} are {values.dtype}; give the indices of classes")
        wrong = values[(values < 0) | (values >= num_classes)]
        if wrong.size:
            raise ValueError(f"{name} hold {wrong[0]}, which is not in 0..{num_classes - 1}")
    # int64 first: the product overflows a narrower type.
    cells = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


class ClassRow(NamedTuple):
    """Attributes:
    name: name of the class.
    count: its examples.
    correct: those predicted as this class.
    accuracy: in percent; NaN without examples.
    confused_with: the other class it was most often taken for, the lower one of equals; None where
        nothing was wrong.
    """

    name: str
    count: int
    correct: int
    accuracy: float
    confused_with: str | None


def per_class_rows(matrix: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
    """What a confusion matrix says of each class, in the order of the classes.

    Args:
        matrix: int (K, K), labels along the rows.
        class_names: K of them.

    Raises:
        ValueError: as of `check_confusion_matrix`.
    """
    check_confusion_matrix(matrix, class_names)
    rows = []
    for index, name in enumerate(class_names):
        count, correct = int(matrix[index].sum()), int(matrix[index, index])
        wrong = matrix[index].copy()
        wrong[index] = 0
        accuracy = 100 * correct / count if count else math.nan
        other = class_names[int(wrong.argmax())] if wrong.any() else None
        rows.append(ClassRow(name, count, correct, accuracy, other))
    return rows


def write_per_class_csv(matrix: np.ndarray, class_names: Sequence[str], path: Path | str) -> None:
    """Writes `per_class_rows` as a table with a header; what is NaN or None is left empty.

    Raises:
        ValueError: as of `check_confusion_matrix`.
    """
    rows = per_class_rows(matrix, class_names)
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "count", "correct", "accuracy", "confused_with"))
        for row in rows:
            accuracy = "" if math.isnan(row.accuracy) else f"{row.accuracy:.2f}"
            writer.writerow((row.name, row.count, row.correct, accuracy, row.confused_with or ""))


def check_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Checks that a matrix holds counts of as many classes as have a name.

    Raises:
        ValueError: the matrix is empty, not square, negative or not of integers, or the number of
            names differs.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"the confusion matrix is {matrix.shape}; it must be (K, K), K at least 1")
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise ValueError(
            f"the confusion matrix is {matrix.dtype} with a minimum of {matrix.min()}; it must "
            "hold counts"
        )
    if len(class_names) != len(matrix):
        raise ValueError(f"{len(class_names)} class names for {len(matrix)} classes")
