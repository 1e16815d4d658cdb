# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices against scikit-learn, and the table of classes against a count by hand."""

import csv
import math

import numpy as np
import pytest
from sklearn import metrics

from mambaout_jax.metrics.confusion import (
    ClassRow,
    check_confusion_matrix,
    confusion_matrix,
    per_class_rows,
    write_per_class_csv,
)

NAMES = ("cat", "dog, wild", "eel", "“fox”")
MATRIX = np.array([[7, 1, 2, 0], [3, 4, 3, 0], [0, 0, 0, 0], [0, 0, 0, 5]])
ROWS = [
    ClassRow("cat", 10, 7, 70.0, "eel"),
    ClassRow("dog, wild", 10, 4, 40.0, "cat"),  # as often as the eel, which comes later
    ClassRow("“fox”", 5, 5, 100.0, None),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
@pytest.mark.parametrize("num_classes", [2, 3, 100])
def test_confusion_matrix_equals_sklearns(rng, dtype, num_classes):
    labels, predictions = rng.integers(0, num_classes, (2, 500)).astype(dtype)
    predictions = np.where(rng.random(500) < 0.5, labels, predictions)
    matrix = confusion_matrix(labels, predictions, num_classes)
    assert matrix.dtype == np.int64
    expected = metrics.confusion_matrix(labels, predictions, labels=range(num_classes))
    np.testing.assert_array_equal(matrix, expected)


def test_confusion_matrix_of_no_example_is_zero():
    matrix = confusion_matrix(np.array([], np.int32), np.array([], np.int32), 3)
    np.testing.assert_array_equal(matrix, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0, 1, 1], r"labels \(2,\) and predictions \(3,\) must both be"),
        ([[0, 1]], [[0, 1]], r"labels \(1, 2\)"),
        ([0, 3], [0, 1], "labels hold 3, which is not in 0..2"),
        ([0, 1], [-1, 1], "predictions hold -1"),
        ([0, 1], [0.0, 1.0], "predictions are float64"),
    ],
)
def test_confusion_matrix_names_what_is_wrong(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels), np.array(predictions), 3)


def test_per_class_rows_count_by_hand():
    cat, dog, eel, fox = per_class_rows(MATRIX, NAMES)
    assert [cat, dog, fox] == ROWS
    assert (eel.name, eel.count, eel.correct, eel.confused_with) == ("eel", 0, 0, None)
    assert math.isnan(eel.accuracy)
    assert MATRIX[0, 0] == 7  # the matrix is left as it was


def test_per_class_csv_reads_back(tmp_path):
    write_per_class_csv(MATRIX, NAMES, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "count", "correct", "accuracy", "confused_with"],
        ["cat", "10", "7", "70.00", "eel"],
        ["dog, wild", "10", "4", "40.00", "cat"],
        ["eel", "0", "0", "", ""],
        ["“fox”", "5", "5", "100.00", ""],
    ]


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        (np.zeros((2, 3), int), "ab", r"is \(2, 3\); it must be \(K, K\)"),
        (np.zeros((0, 0), int), "", r"is \(0, 0\)"),
        (np.zeros(4, int), "abcd", r"is \(4,\)"),
        (np.eye(2), "ab", "is float64"),
        (np.array([[1, -2], [0, 1]]), "ab", "a minimum of -2"),
        (np.eye(3, dtype=int), "ab", "2 class names for 3 classes"),
    ],
)
def test_check_confusion_matrix_names_what_is_wrong(matrix, names, message):
    for function in (check_confusion_matrix, per_class_rows):
        with pytest.raises(ValueError, match=message):
            function(matrix, tuple(names))
