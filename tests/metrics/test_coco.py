# SPDX-License-Identifier: Apache-2.0
"""Average precision against what pycocotools itself counted, and its traps."""

import copy

import numpy as np
import pytest
from support.dense_goldens import load_dense

from mambaout_jax.metrics.coco import (
    FIGURES,
    KINDS,
    coco_metrics,
    decode_mask,
    encode_mask,
    encode_window,
    evaluate_coco,
)

ARRAYS, META, _ = load_dense("coco_eval")
TRUTH, FOUND = META["ground_truth"], META["detections"]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_pycocotools(kind, capsys):
    before = copy.deepcopy((TRUTH, FOUND))
    result = evaluate_coco(TRUTH, FOUND, kind)
    assert tuple(result.figures) == FIGURES
    stats = ARRAYS[f"{kind}_stats"]
    np.testing.assert_allclose(list(result.figures.values()), stats, rtol=0, atol=1e-9)
    expected = ARRAYS[f"{kind}_ap_per_class"]
    expected = np.where(expected < 0, np.nan, expected)
    np.testing.assert_allclose(result.per_class(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.precision[0], ARRAYS[f"{kind}_precision_iou50"], atol=1e-9)
    assert result.category_ids == tuple(sorted(row["id"] for row in TRUTH["categories"]))
    assert before == (TRUTH, FOUND), "neither side is written into"
    assert capsys.readouterr() == ("", "")


def test_masks_have_the_size_of_their_own_area():
    with_boxes = ARRAYS["segm_stats_box_area"]
    assert not np.allclose(with_boxes, ARRAYS["segm_stats"]), "the golden holds the trap"
    assert all("bbox" in row for row in FOUND)
    stats = list(coco_metrics(TRUTH, FOUND, "segm").values())
    np.testing.assert_allclose(stats, ARRAYS["segm_stats"], atol=1e-9)


def scene(annotations):
    rows = [{"image_id": 7, "category_id": 3, "area": 400, **row} for row in annotations]
    return {
        "images": [{"id": 7, "height": 50, "width": 60}],
        "categories": [{"id": 3, "name": "three"}, {"id": 5, "name": "five"}],
        "annotations": rows,
    }


def test_perfect_missing_and_no_detections():
    truth = scene([{"id": 0, "bbox": [5, 5, 20, 20]}])  # a number that pycocotools takes for "none"
    found = [{"image_id": 7, "category_id": 3, "score": 0.9, "bbox": [5, 5, 20, 20]}]
    metrics = coco_metrics(truth, found)
    assert metrics["ap"] == pytest.approx(1)
    assert metrics["ap_small"] == pytest.approx(1)
    assert metrics["ap_large"] == -1
    assert coco_metrics(truth, [])["ap"] == 0
    assert coco_metrics(truth, [])["ar100"] == 0
    assert np.isnan(evaluate_coco(truth, found).per_class()).tolist() == [False, True]
    missed = [{**found[0], "bbox": [35, 5, 20, 20]}]
    assert coco_metrics(truth, missed)["ap"] == 0
    assert coco_metrics(scene([]), missed)["ap"] == -1


def test_what_cannot_be_compared_is_told():
    truth = scene([{"id": 1, "bbox": [5, 5, 20, 20]}])
    found = {"image_id": 7, "category_id": 3, "score": 0.9, "bbox": [5, 5, 20, 20]}
    with pytest.raises(ValueError, match="kind='mask' is not known; allowed are 'bbox', 'segm'"):
        coco_metrics(truth, [found], "mask")
    with pytest.raises(ValueError, match="image_id=8, which is not among the 1 images"):
        coco_metrics(truth, [{**found, "image_id": 8}])
    with pytest.raises(ValueError, match="category_id=4, which is not among the 2 categories"):
        coco_metrics(truth, [{**found, "category_id": 4}])
    with pytest.raises(ValueError, match="detection 0 has no 'segmentation', which kind='segm'"):
        coco_metrics(truth, [found], "segm")


def test_run_lengths_are_cocos():
    arrays, meta, _ = load_dense("coco_masks")
    height, width = meta["image_shape"]
    masks = np.unpackbits(arrays["masks_bits"], axis=-1)[..., :width]
    assert len(masks) == 6
    for mask, text in zip(masks, meta["rle"], strict=True):
        assert encode_mask(mask) == {"size": [height, width], "counts": text}
        np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((2, 7), (3, 9)), ((0, 10), (0, 12)), ((0, 10), (4, 6)), ((5, 10), (7, 12)), ((3, 3), (0, 0))],
)
@pytest.mark.parametrize("share", [0.5, 1.0, 0.0])
def test_windows_are_encoded_as_their_whole_masks(rng, rows, columns, share):
    window = rng.uniform(size=(rows[1] - rows[0], columns[1] - columns[0])) < share
    mask = np.zeros((10, 12), bool)
    mask[slice(*rows), slice(*columns)] = window
    assert encode_window(window, (rows[0], columns[0]), (10, 12)) == encode_mask(mask)
