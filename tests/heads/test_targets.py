# SPDX-License-Identifier: Apache-2.0
"""Matching, sampling and masks' targets, against mmdet's and loops in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dense_goldens import load_dense
from support.detection_goldens import load_objects, spaced_draw

from mambaout_jax.heads.boxes import box_iou
from mambaout_jax.heads.targets import (
    IGNORED,
    NEGATIVE,
    assign,
    inside_image,
    mask_targets,
    sample,
    sample_anchors,
    sample_regions,
    uniform_draw,
)

STRIDES = (4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def golden():
    return load_objects()


def overlaps(a, b):
    """IoU in float32, every operation rounded by itself."""
    common = np.maximum(np.minimum(a[:, None, 2:], b[None, :, 2:])
                        - np.maximum(a[:, None, :2], b[None, :, :2]), np.float32(0))  # fmt: skip
    common = common[..., 0] * common[..., 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = area_a[:, None] + area_b[None] - common
    return common / np.maximum(union, np.float32(1e-6))


def anchors_of(map_sizes):
    """A loop over levels, rows, columns and ratios."""
    boxes = []
    for (height, width), stride in zip(map_sizes, STRIDES, strict=True):
        for y, x in np.ndindex(height, width):
            for ratio in (0.5, 1, 2):
                half = np.asarray((8 / np.sqrt(ratio), 8 * np.sqrt(ratio))) * stride / 2
                centre = np.asarray((x * stride, y * stride))
                boxes.append(np.concatenate((centre - half, centre + half)))
    return np.asarray(boxes, np.float32)


def boxes_in(rng, shape, size=100):
    corners = rng.uniform(0, size, (*shape, 2, 2)).astype(np.float32)
    return np.concatenate((corners.min(-2), corners.max(-2)), axis=-1)


def test_anchors_are_sampled_as_by_mmdet(golden):
    arrays, meta, _, objects = golden
    sizes = tuple(map(tuple, meta["level_shapes"]))
    anchors = anchors_of(sizes)
    inside = inside_image(sizes, STRIDES, jnp.asarray(meta["image_shapes"]))
    samples, deltas = sample_anchors(
        jnp.asarray(anchors), inside, objects["boxes"], objects["labels"], spaced_draw
    )
    found = np.full(arrays["rpn_label"].shape, -1, np.int8)
    image, row = np.nonzero(samples.counted)
    found[image, samples.index[image, row]] = samples.positive[image, row]
    np.testing.assert_array_equal(found, arrays["rpn_label"])
    by_anchor = np.zeros((*found.shape, 4), np.float32)
    by_anchor[image, samples.index[image, row]] = deltas[image, row]
    np.testing.assert_allclose(
        by_anchor[found == 1], arrays["rpn_box_target"], rtol=1e-5, atol=1e-6
    )


def test_regions_and_their_masks_are_mmdets(golden):
    arrays, _, _, objects = golden
    rows = [arrays["proposals"][arrays["proposals"][:, 0] == i, 1:] for i in range(3)]
    most = max(map(len, rows))
    proposals = np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])
    valid = np.arange(most)[None] < np.asarray([[len(row)] for row in rows])
    truths, labels = objects["boxes"], objects["labels"]
    regions = sample_regions(
        jnp.asarray(proposals), jnp.asarray(valid), truths, labels, 80, spaced_draw, number=64
    )
    counted, positive = np.asarray(regions.counted), np.asarray(regions.positive)
    np.testing.assert_array_equal(np.asarray(regions.labels)[counted], arrays["roi_label"])
    assert (np.asarray(regions.labels)[~counted] == -1).all()
    weights = arrays["roi_box_weight"] > 0
    np.testing.assert_array_equal(positive[counted], weights)
    np.testing.assert_allclose(
        np.asarray(regions.deltas)[positive], arrays["roi_box_target"][weights],
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    first = slice(0, 16)
    masks = mask_targets(objects["masks"], regions.boxes[:, first], regions.matched[:, first])
    expected = np.unpackbits(arrays["mask_target_bits"], axis=-1)[..., :28].astype(bool)
    np.testing.assert_array_equal(np.asarray(masks)[positive[:, first]], expected)


def test_mask_targets_of_large_small_and_leaving_regions():
    arrays, meta, _ = load_dense("masks")
    packed = jnp.asarray(arrays["gt_bits"])[None]  # 80 pixels wide: whole bytes
    assert 8 * packed.shape[-1] == meta["image_shape"][1]
    found = mask_targets(
        packed, jnp.asarray(arrays["target_boxes"])[None], jnp.asarray(arrays["target_index"])[None]
    )
    clear = np.abs(arrays["target_soft"] - 0.5) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(found)[0][clear], arrays["target"][clear])


def assigned(boxes, allowed, truths, labels, positive, negative, least):
    """mmdet's rule, object by object."""
    matched = np.full(len(boxes), NEGATIVE)
    iou = np.where(allowed[:, None] & (labels >= 0)[None], overlaps(boxes, truths), -1)
    for n, row in enumerate(iou):
        if row.max(initial=0) >= positive:
            matched[n] = row.argmax()
        elif row.max(initial=0) >= negative:
            matched[n] = IGNORED
    for m in np.flatnonzero(labels >= 0):
        if iou[:, m].max() >= least:
            matched[iou[:, m] == iou[:, m].max()] = m
    return np.where(allowed, matched, IGNORED)


def test_assignment_is_that_of_a_loop_with_ties(rng):
    boxes, truths = boxes_in(rng, (2, 300), 60), boxes_in(rng, (2, 6), 60)
    truths[:, 1], truths[0, 2] = truths[:, 0], truths[0, 0]  # the last of equal objects takes them
    truths[1, 2] = 0  # empty
    boxes[:, 297:] = truths[:, :1] + np.float32(0.5)  # three that tie
    labels = np.asarray([[3, 0, 1, -1, 2, -1], [0, 1, 2, 3, -1, -1]], np.int32)
    allowed = rng.uniform(size=(2, 300)) < 0.9
    allowed[:, 297:] = True
    limits = {"positive": 0.6, "negative": 0.3, "least": 0.2}
    found = jax.jit(functools.partial(assign, **limits))(boxes, allowed, truths, labels)
    found = np.asarray(found)
    images = zip(boxes, allowed, truths, labels, strict=True)
    expected = [assigned(*image, **limits) for image in images]
    np.testing.assert_array_equal(found, expected)
    kinds = [(np.asarray(expected) == kind).sum() for kind in (NEGATIVE, IGNORED)]
    assert min(kinds) > 20
    assert (found[:, 297:] == found[:, 297:298]).all(), "all that tie are taken"
    assert (found[:, 297] == (2, 1)).all()


@pytest.mark.optimised
def test_overlaps_are_rounded_operation_by_operation(rng):
    boxes, truths = boxes_in(rng, (500,)), boxes_in(rng, (40,))
    np.testing.assert_array_equal(jax.jit(box_iou)(boxes, truths), overlaps(boxes, truths))


def test_samples_are_the_highest_of_each_kind(rng):
    matched = np.asarray(rng.choice([NEGATIVE, IGNORED, 0, 4], (3, 40), p=[0.5, 0.2, 0.2, 0.1]))
    matched[1] = np.where(matched[1] >= 0, NEGATIVE, matched[1])  # without positives
    matched[2, 6:] = IGNORED  # too few candidates
    priority = rng.uniform(size=(3, 40)).astype(np.float32)
    samples = sample(jnp.asarray(matched), jnp.asarray(priority), number=12, positives=5)
    for i in range(3):
        order = np.argsort(-priority[i])
        positives = [n for n in order if matched[i, n] >= 0][:5]
        negatives = [n for n in order if matched[i, n] == NEGATIVE][: 12 - len(positives)]
        counted, total = np.asarray(samples.counted[i]), len(positives) + len(negatives)
        assert counted.tolist() == [True] * total + [False] * (12 - total)
        assert np.asarray(samples.index[i])[:total].tolist() == positives + negatives
        assert np.asarray(samples.positive[i]).sum() == len(positives)
        assert np.asarray(samples.matched[i])[: len(positives)].tolist() == [
            matched[i, n] for n in positives
        ]
    few = sample(jnp.asarray(matched[:, :8]), jnp.asarray(priority[:, :8]), number=12, positives=9)
    assert few.index.shape == (3, 8)


def test_draws_are_an_images_own():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(4))
    matched = jnp.zeros((4, 50), jnp.int32)
    drawn = {stage: uniform_draw(keys)(stage, matched) for stage in ("anchors", "regions")}
    alone = uniform_draw(keys[2:3])("anchors", matched[:1])
    np.testing.assert_array_equal(drawn["anchors"][2:3], alone)
    values = np.concatenate([np.asarray(array).ravel() for array in drawn.values()])
    assert len(np.unique(values)) == values.size
    assert values.min() >= 0
    assert values.max() < 1


def test_cells_beyond_an_images_own_padding_are_outside():
    sizes = ((8, 16), (4, 8), (2, 4), (1, 2), (1, 1))  # of 32 x 64 pixels
    shapes = jnp.asarray([[32, 64], [9, 33], [20, 31]])
    inside = np.asarray(inside_image(sizes, STRIDES, shapes))
    assert inside.shape == (3, 3 * (128 + 32 + 8 + 2 + 1))
    assert inside[:2].all()
    of_p2 = inside[2, : 3 * 128].reshape(8, 16, 3)
    assert of_p2[:, :8].all()
    assert not of_p2[:, 8:].any()
    assert inside[2, -1:].all()


def test_an_image_without_objects_has_only_negatives():
    none = jnp.full((1, 3), -1), jnp.zeros((1, 3, 4))
    proposals = jnp.asarray(boxes_in(np.random.default_rng(0), (1, 9)))
    valid = jnp.arange(9)[None] < 7
    draw = uniform_draw(jax.random.split(jax.random.key(0), 1))
    regions = jax.jit(functools.partial(sample_regions, num_classes=4, draw=draw, number=8))(
        proposals, valid, none[1], none[0]
    )
    assert regions.labels.tolist() == [[4] * 7 + [-1]]
    assert not regions.positive.any()
