# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union against mmseg's numbers and loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dense_goldens import load_dense

from mambaout_jax.metrics.miou import (
    class_overlaps,
    mean_iou,
    pixel_confusion,
    write_class_overlaps_csv,
)


@pytest.fixture(scope="module")
def golden():
    arrays, meta, _ = load_dense("segmentation")
    count = jax.jit(pixel_confusion, static_argnames="num_classes")
    confusion = sum(
        np.asarray(count(label, prediction, num_classes=8), np.int64)
        for label, prediction in zip(arrays["label"], arrays["prediction"], strict=True)
    )
    return arrays, meta, confusion


def test_pixels_are_counted_as_by_mmseg(golden):
    arrays, _, confusion = golden
    assert 255 in arrays["label"]
    intersect, union, predicted, labelled = arrays["areas"]
    np.testing.assert_array_equal(np.diag(confusion), intersect)
    np.testing.assert_array_equal(confusion.sum(0), predicted)
    np.testing.assert_array_equal(confusion.sum(1), labelled)
    np.testing.assert_array_equal(confusion.sum(0) + confusion.sum(1) - intersect, union)


def test_metrics_are_those_of_mmseg(golden):
    """One of the golden's classes is predicted only, another occurs nowhere."""
    arrays, meta, confusion = golden
    overlaps = class_overlaps(confusion)
    np.testing.assert_allclose(overlaps.iou, 100 * arrays["iou"], rtol=1e-5)
    np.testing.assert_allclose(overlaps.accuracy, 100 * arrays["acc"], rtol=1e-5)
    assert overlaps.iou[6] == 0
    assert np.isnan(overlaps.accuracy[6])
    assert np.isnan(overlaps.iou[7])
    expected = {
        name: pytest.approx(100 * meta[name], rel=1e-6) for name in ("miou", "macc", "aacc")
    }
    assert mean_iou(confusion) == expected


def test_images_are_not_averaged():
    """Two of four pixels in one image and all of one in another: 3 / 5, and not 3 / 4."""
    confusion = np.array([[2, 2], [0, 0]]) + np.array([[1, 0], [0, 0]])
    assert class_overlaps(confusion).iou[0] == pytest.approx(60)
    assert mean_iou(confusion) == pytest.approx({"miou": 30, "macc": 60, "aacc": 60})


def test_labels_that_are_no_class_do_not_count():
    labels = jnp.array([[0, 255], [2, 1]], jnp.uint8)
    predictions = jnp.array([[1, 0], [0, 1]], jnp.int32)
    counted = pixel_confusion(labels, predictions, 2)
    np.testing.assert_array_equal(counted, [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("confusion", "said"),
    [
        (np.zeros((2, 2), int), "counts no pixel"),
        (np.zeros((2, 3), int), r"\(2, 3\)"),
        (np.full((2, 2), 0.5), "float64"),
    ],
)
def test_what_is_no_count_is_refused(confusion, said):
    with pytest.raises(ValueError, match=said):
        mean_iou(confusion)


def test_table_of_classes(tmp_path):
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    write_class_overlaps_csv(confusion, ("sky", "tree", "sea"), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "class,pixels,iou,accuracy,confused_with",
        "sky,4,75.00,75.00,tree",
        "tree,0,0.00,,",
        "sea,0,,,",
    ]
