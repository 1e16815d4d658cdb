# SPDX-License-Identifier: Apache-2.0
"""The box head and the detections that follow from it, against mmdet's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from support.dense_goldens import load_dense

from mambaout_jax.heads.roi import BoxHead, detections


def box_params(state):
    """Parameters of our head: inputs are (y, x, C) here, and background is last."""

    def layer(name, weight, bias):
        return {name: {"kernel": weight.T, "bias": bias}}

    first = state["box_head.fc6.weight"].reshape(1024, 256, 7, 7)
    logits, deltas = (
        (state[f"box_predictor.{name}.weight"], state[f"box_predictor.{name}.bias"])
        for name in ("cls_score", "bbox_pred")
    )
    return {
        **layer("fc1", first.transpose(0, 2, 3, 1).reshape(1024, -1), state["box_head.fc6.bias"]),
        **layer("fc2", state["box_head.fc7.weight"], state["box_head.fc7.bias"]),
        **layer("classifier", *(np.roll(x, -1, axis=0) for x in logits)),
        **layer("delta", *(x[4:] for x in deltas)),
    }


def test_logits_and_deltas_are_mmdets():
    arrays, meta, state = load_dense("roi_heads")
    x = jnp.asarray(input_of((6, 256, 7, 7), 0).transpose(0, 2, 3, 1))
    logits, deltas = jax.jit(BoxHead(80).apply)({"params": box_params(state)}, x)
    limit = 5e-5 * meta["stages"]["box"]["std"]
    assert np.abs(logits - np.roll(arrays["cls"], -1, axis=1)).max() <= limit
    assert np.abs(deltas - arrays["reg"].reshape(6, 81, 4)[:, 1:]).max() <= limit


def test_detections_are_mmdets():
    arrays, meta, _ = load_dense("detections")
    find = jax.jit(functools.partial(detections, limit=30))
    proposals, logits = arrays["proposals"][None], arrays["logits"][None]
    deltas = arrays["deltas"].reshape(1, 60, 5, 4)
    found = find(
        proposals, np.ones((1, 60), bool), logits, deltas, np.array((meta["image_shape"],))
    )
    np.testing.assert_allclose(found.boxes[0], arrays["boxes"], atol=1e-3)
    np.testing.assert_allclose(found.scores[0], arrays["scores"], atol=1e-5)
    np.testing.assert_array_equal(found.labels[0], arrays["labels"])
    assert found.labels.dtype == np.int32


def detections_in_numpy(boxes, probabilities, limit):
    """One candidate after the other, by falling score; boxes stay where they are."""
    kept = []
    for row, label in sorted(np.ndindex(*probabilities.shape), key=lambda at: -probabilities[at]):
        if probabilities[row, label] <= 0.05 or len(kept) == limit:
            break
        overlaps = [iou(boxes[row], boxes[other]) for other, same in kept if same == label]
        if not any(overlap > 0.5 for overlap in overlaps):
            kept.append((row, label))
    return kept


def iou(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()
    return sides.prod() / union


@pytest.mark.slow
def test_few_detections_leave_padded_rows_and_many_are_cut(rng):
    corners = np.sort(rng.uniform(0, 60, (2, 40, 2, 2)), axis=2).reshape(2, 40, 4)
    corners[..., 2:] += 4
    boxes = corners.astype(np.float32)
    logits = rng.normal(0, 2, (2, 40, 4)).astype(np.float32)
    logits[0, :, 3] += 9  # of the first image nearly all are background
    valid = rng.uniform(size=(2, 40)) < 0.8
    shapes = np.full((2, 2), 64, np.int32)
    find = jax.jit(functools.partial(detections, limit=12))
    found = find(boxes, valid, logits, np.zeros((2, 40, 3, 4), np.float32), shapes)
    for i in range(2):
        odds = np.exp(logits[i].astype(float))
        probabilities = (odds / odds.sum(-1, keepdims=True))[:, :3] * valid[i][:, None]
        kept = detections_in_numpy(corners[i], probabilities, 12)
        assert (len(kept) < 12) == (i == 0)
        rows, labels = (np.array(part) for part in zip(*kept, strict=True))
        count = len(kept)
        np.testing.assert_array_equal(found.labels[i, :count], labels)
        np.testing.assert_allclose(found.boxes[i, :count], boxes[i][rows], atol=1e-4)
        np.testing.assert_allclose(found.scores[i, :count], probabilities[rows, labels], rtol=1e-5)
        np.testing.assert_array_equal(found.labels[i, count:], -1)
        np.testing.assert_array_equal(found.scores[i, count:], 0)
        np.testing.assert_array_equal(found.boxes[i, count:], 0)


def test_narrow_heads_say_scores_and_boxes_in_float32():
    head = BoxHead(3, 8, jnp.bfloat16)
    outputs = jax.eval_shape(
        lambda key, x: head.init_with_output(key, x)[0],
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 5, 7, 7, 4), jnp.bfloat16),
    )
    assert [(x.shape, x.dtype) for x in outputs] == [
        ((2, 5, 4), jnp.float32), ((2, 5, 3, 4), jnp.float32),
    ]  # fmt: skip
