# SPDX-License-Identifier: Apache-2.0
"""Detections of batches become those of a set, and what COCO counts of it."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.perfect_detections import perfect

from mambaout_jax.data.sets import scenes
from mambaout_jax.metrics.coco import coco_metrics, decode_mask
from mambaout_jax.tasks.coco_results import (
    check_all_seen,
    coco_detections,
    merge_rows,
    rows_of_batch,
    worst_images,
)

IMAGES = 16  # with an empty one, two crowds and four portraits among them


@pytest.fixture(scope="module")
def source():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenes.COUNTS, "validation", IMAGES)
        yield scenes.Scenes("validation", "detection", 64)


@pytest.fixture(scope="module")
def found(source):
    """All of the set, in batches out of order, merged in two steps; the last one is filled up."""
    batches = [perfect(source, list(range(start, start + 4))) for start in (4, 0, 8)]
    batches.append(perfect(source, [12, 13, 14, 15, -1, -1]))
    return merge_rows([merge_rows(batches[:2]), *batches[2:]])


def test_every_object_is_kept_once_and_no_padding(source, found):
    counts = [len(source[i]["labels"]) for i in range(IMAGES)]
    assert 0 in counts
    assert np.bincount(found["index"], minlength=IMAGES).tolist() == counts
    assert sorted(found["seen"].tolist()) == list(range(IMAGES))
    check_all_seen(found, IMAGES)
    again = {**found, "seen": np.concatenate((found["seen"][1:], [7, 7]))}
    with pytest.raises(RuntimeError, match="of 16 images 1 were not looked at and 1 more than on"):
        check_all_seen(again, IMAGES)


def test_what_is_found_perfectly_has_perfect_precision(source, found):
    truth, detections = source.ground_truth(), coco_detections(found, source)
    assert any(row["iscrowd"] for row in truth["annotations"])
    assert coco_metrics(truth, detections, "bbox")["ap"] == pytest.approx(1)
    masks = coco_metrics(truth, detections, "segm")
    assert masks["ap50"] > 0.9, "28 x 28 cells draw all but the thinnest"
    by_image = {row["id"]: row for row in truth["images"]}
    for row in detections[:5]:
        size = by_image[row["image_id"]]["height"], by_image[row["image_id"]]["width"]
        assert decode_mask(row["segmentation"]).shape == size


def test_what_is_not_found_costs(source, found):
    kept = np.arange(len(found["index"])) % 2 == 0
    rows = {name: column if name == "seen" else column[kept] for name, column in found.items()}
    metrics = coco_metrics(source.ground_truth(), coco_detections(rows, source), "bbox")
    assert 0.3 < metrics["ap"] < 0.7


def test_worst_images_have_most_mistakes(source, found):
    assert worst_images(found, source, 4) == []
    first, second = np.argsort(-np.bincount(found["index"]), kind="stable")[:2].tolist()
    (rows,) = np.nonzero(found["index"] == first)
    assert len(rows) > 3
    labels, boxes = found["label"].copy(), found["box"].copy()
    labels[rows[0]] = (labels[rows[0]] + 1) % 10  # of another class: one wrong and one missed
    (other,) = np.nonzero(found["index"] == second)
    boxes[other[-1]] = boxes[other[-1]][[0, 1, 0, 1]] + np.asarray([0, 0, 1, 1])
    scores = found["score"].copy()
    scores[rows[1]] = 0.4  # not sure: missed
    worst = worst_images({**found, "label": labels, "box": boxes, "score": scores}, source, 4)
    assert [(row.index, row.wrong, len(row.missed[1])) for row in worst] == [
        (first, 1, 2),
        (second, 1, 1),
    ]
    np.testing.assert_allclose(
        worst[0].missed[0][0], found["box"][rows[0]], rtol=1e-6, err_msg="corners, not sides"
    )


def test_boxes_go_back_to_the_original_and_fillers_are_nothing():
    found = {
        "boxes": jnp.asarray([[[10.0, 20, 30, 40]], [[1, 2, 3, 4]]]),
        "scores": jnp.asarray([[0.7], [0.9]]),
        "labels": jnp.asarray([[3], [5]]),
        "masks": jnp.full((2, 1, 28, 28), 0.5),
    }
    batch = {
        "scale": jnp.asarray([[2.0, 0.5], [0, 0]]),  # y, x; a filler's is 0
        "index": jnp.asarray([6, 0]),
        "image_id": jnp.asarray([600, 0]),
        "mask": jnp.asarray([True, False]),
    }
    rows = {name: np.asarray(column) for name, column in rows_of_batch(found, batch).items()}
    np.testing.assert_allclose(rows["box"][0, 0], [20, 10, 60, 20])
    assert np.isfinite(rows["box"]).all()
    assert rows["mask"].dtype == np.uint8
    merged = merge_rows([rows])
    assert {name: merged[name].tolist() for name in ("seen", "index", "image_id", "label")} == {
        "seen": [6], "index": [6], "image_id": [600], "label": [3],
    }  # fmt: skip
