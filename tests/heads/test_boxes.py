# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of boxes, against mmdet's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dense_goldens import load_dense

from mambaout_jax.heads.boxes import MAX_LOG_RATIO, box_iou, clip, decode, encode

STDS = {"rpn": (1.0, 1.0, 1.0, 1.0), "rcnn": (0.1, 0.1, 0.2, 0.2)}


@pytest.fixture(scope="module")
def golden():
    return load_dense("boxes")


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", STDS)
def test_encode_and_decode_are_mmdets(golden, kind):
    arrays, meta, _ = golden
    deltas = encode(arrays["anchors"], arrays["gt"], STDS[kind])
    assert_close(deltas, arrays[f"mmdet_encode_{kind}"])
    boxes = decode(arrays["anchors"], arrays["deltas"], STDS[kind])
    assert_close(boxes, arrays[f"mmdet_decode_{kind}"])
    assert_close(clip(boxes, np.array(meta["image_shape"])), arrays[f"mmdet_decode_clip_{kind}"])
    assert_close(decode(arrays["anchors"], deltas, STDS[kind]), arrays["gt"])


def test_overlaps_are_torchvisions(golden):
    arrays, meta, _ = golden
    assert_close(box_iou(arrays["anchors"], arrays["gt"]), arrays["iou"])
    assert_close(clip(arrays["anchors"], np.array(meta["image_shape"])), arrays["clip"])


def test_each_image_has_its_own_boxes_and_limits(rng):
    corners = rng.uniform(0, 90, (2, 5, 2, 2)).astype(np.float32)
    boxes = np.concatenate((corners.min(2), corners.max(2)), axis=-1)
    limits = np.array(((40, 60), (70, 50)), np.int32)
    clipped, overlaps = jax.jit(lambda boxes: (clip(boxes, limits), box_iou(boxes, boxes[:, :3])))(
        boxes
    )
    assert overlaps.shape == (2, 5, 3)
    for i, (height, width) in enumerate(limits):
        expected = np.minimum(boxes[i], (width, height, width, height))
        np.testing.assert_array_equal(clipped[i], expected)
        for j, k in np.ndindex(5, 3):
            (a, b), (c, d) = boxes[i, j].reshape(2, 2), boxes[i, k].reshape(2, 2)
            common = np.clip(np.minimum(b, d) - np.maximum(a, c), 0, None).prod()
            union = (b - a).prod() + (d - c).prod() - common
            np.testing.assert_allclose(overlaps[i, j, k], common / union, rtol=1e-5)


def test_log_ratios_are_cut_both_ways():
    box = np.array(((0, 0, 16, 16),), np.float32)
    decoded = decode(box, np.array(((0, 0, 99, -99),), np.float32), STDS["rpn"])
    width, height = 16 * np.exp(MAX_LOG_RATIO), 16 * np.exp(-MAX_LOG_RATIO)
    assert_close(decoded, ((8 - width / 2, 8 - height / 2, 8 + width / 2, 8 + height / 2),))


def test_padded_rows_are_zero_with_gradients():
    empty, box = np.zeros(4, np.float32), np.array((1, 2, 5, 4), np.float32)
    boxes, targets = jnp.stack((empty, box, empty)), jnp.stack((box, empty, empty))

    def deltas(boxes, targets):
        found = encode(boxes, targets, STDS["rcnn"])
        return found.sum(), (found, jnp.diag(box_iou(boxes, targets)))

    run = jax.jit(jax.value_and_grad(deltas, argnums=(0, 1), has_aux=True))
    for found in jax.tree.leaves(run(boxes, targets)):
        np.testing.assert_array_equal(found, 0)


def test_narrow_boxes_are_computed_in_float32():
    box = jnp.asarray(((0, 0, 16, 16),), jnp.bfloat16)
    assert decode(box, box * 0.1, STDS["rpn"]).dtype == jnp.float32
    assert box_iou(box, box).dtype == jnp.float32
    with jax.enable_x64():
        wide = np.array(((0.0, 0.0, 1.0, 3.0),))
        assert encode(wide, wide, STDS["rpn"]).dtype == np.float64
