# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression against torchvision's results and its loop, written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from support.places import GOLDENS

from mambaout_jax.kernels import nms as module
from mambaout_jax.kernels.nms import nms


@functools.cache
def program(threshold, max_outputs, grouped):
    def run(boxes, scores, groups=None):
        return nms(boxes, scores, threshold, groups=groups, max_outputs=max_outputs)

    return jax.jit(run if grouped else lambda boxes, scores: run(boxes, scores))


@pytest.mark.parametrize(
    ("threshold", "grouped", "tile"),
    [
        (0.3, True, 64),  # several tiles, some kept boxes
        (0.5, False, 64),
        *(
            pytest.param(threshold, grouped, 100, marks=pytest.mark.slow)
            for threshold in (0.3, 0.5, 0.7)
            for grouped in (False, True)
        ),
    ],
)
def test_nms_is_torchvisions(monkeypatch, threshold, grouped, tile):
    monkeypatch.setattr(module, "_TILE", tile)
    program.cache_clear()
    with np.load(GOLDENS / "dense" / "nms.npz") as file:
        golden = dict(file)
    expected = golden[f"batched_keep_{threshold}" if grouped else f"keep_{threshold}"]
    arrays = golden["boxes"], golden["scores"], golden["ids"].astype(np.int32)
    kept = program(threshold, 250, grouped)(*arrays[: 2 + grouped])
    np.testing.assert_array_equal(kept[: len(expected)], expected)
    np.testing.assert_array_equal(kept[len(expected) :], -1)
    kept = program(threshold, 20, grouped)(*arrays[: 2 + grouped])
    np.testing.assert_array_equal(kept, expected[:20])


def by_loop(boxes, scores, threshold, groups):
    """torchvision's CPU kernel: in the dtype of the boxes, the threshold in double precision."""
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    zero = boxes.dtype.type(0)
    dropped, kept = np.zeros(len(boxes), bool), []
    for i in order:
        if dropped[i]:
            continue
        kept.append(i)
        corner = np.maximum(boxes[i, :2], boxes[:, :2])
        sides = np.maximum(zero, np.minimum(boxes[i, 2:], boxes[:, 2:]) - corner)
        shared = sides[:, 0] * sides[:, 1]
        with np.errstate(invalid="ignore"):
            iou = shared / (areas[i] + areas - shared)
        dropped |= (iou.astype(np.float64) > threshold) & (groups == groups[i])
    return kept


THRESHOLDS = (0.1, 0.3, 1 / 3, 0.5)


@pytest.mark.optimised  # where compilers would fuse a product and a difference
@pytest.mark.parametrize(
    ("dtype", "thresholds"),
    [
        ("float32", (0.3,)),
        pytest.param("float32", THRESHOLDS, marks=pytest.mark.slow),
        pytest.param("float64", THRESHOLDS, marks=pytest.mark.slow),
    ],
)
def test_nms_decides_ties_and_thresholds_as_torchvision(rng, dtype, thresholds):
    """Boxes on a grid: IoUs and scores are equal again and again, also to the threshold."""
    with jax.enable_x64(dtype == "float64"):
        for threshold in thresholds:
            run = jax.jit(functools.partial(nms, threshold=threshold, max_outputs=300))
            for scale in (1, 7):
                corners = rng.integers(0, 9, (2, 300, 2))
                boxes = np.concatenate([corners[0], corners.sum(0)], -1).astype(dtype) / scale
                boxes = boxes.astype(dtype)
                scores = (rng.integers(0, 40, 300) / 40).astype(dtype)
                groups = rng.integers(0, 2, 300).astype(np.int32)
                kept = np.asarray(run(boxes, scores, groups=groups))
                expected = by_loop(boxes, scores, threshold, groups)
                assert kept[: len(expected)].tolist() == expected
                assert (kept[len(expected) :] == -1).all()


def test_nms_leaves_out_rows_without_a_score():
    boxes = jnp.array([[0, 0, 9, 9], [50, 0, 59, 9], [0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 0, 0]])
    scores = jnp.array([jnp.nan, 0.2, 0.1, -jnp.inf, -5.0])
    kept = program(0.5, 7, False)(boxes.astype(jnp.float32), scores)
    np.testing.assert_array_equal(kept, [1, 2, 4, -1, -1, -1, -1])
    nothing = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, max_outputs=2)
    np.testing.assert_array_equal(nothing, [-1, -1])


def test_nms_of_a_chain_alternates():
    """Every box suppresses its neighbour alone: as many rounds as there are boxes in a tile."""
    left = np.arange(100, dtype=np.float32)[:, None] * [[4, 0]]
    boxes = np.concatenate([left, left + 10], -1).astype(np.float32)  # IoU 0.43, then 0.11
    kept = program(0.4, 100, False)(boxes, -np.arange(100, dtype=np.float32))
    np.testing.assert_array_equal(kept[:50], np.arange(0, 100, 2))
    np.testing.assert_array_equal(kept[50:], -1)


def test_nms_of_several_lists_by_vmap(rng):
    corners = rng.uniform(0, 40, (3, 90, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (3, 90, 2))], -1)
    boxes = boxes.astype(np.float32)
    scores = rng.uniform(0, 1, (3, 90)).astype(np.float32)
    scores[1, 4:] = -np.inf
    run = jax.jit(jax.vmap(lambda b, s: nms(b, s, 0.3, max_outputs=90)))
    for kept, b, s in zip(run(boxes, scores), boxes, scores, strict=True):
        expected = by_loop(b, s, 0.3, np.zeros(90))
        np.testing.assert_array_equal(kept, expected + [-1] * (90 - len(expected)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": (2, 5, 4)}, r"float32\(2, 5, 4\).*they must be \(R, 4\) and \(R,\); jax.vmap"),
        ({"boxes": (4, 4)}, r"must be \(R, 4\) and \(R,\)"),
        ({"groups": (4,)}, r"groups int32\(4,\) must be integers \(R,\), or None"),
        ({"threshold": float("nan")}, "threshold=nan; use a finite number"),
        ({"max_outputs": 0}, "max_outputs=0; use a whole number of 1 or more"),
        ({"max_outputs": 2.0}, "max_outputs=2.0; use a whole number"),
    ],
)
def test_nms_rejects(monkeypatch, changes, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = {"boxes": (5, 4), "scores": (5,), "groups": (5,), "threshold": 0.5, "max_outputs": 3}
    given |= changes
    given["boxes"], given["scores"] = jnp.ones(given["boxes"]), jnp.ones(given["scores"])
    given["groups"] = jnp.ones(given["groups"], jnp.int32)
    with pytest.raises(ValueError, match=message):
        nms(**given)


def test_nms_rejects_integer_boxes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="must be floating; cast them first"):
        nms(jnp.ones((2, 4), jnp.int32), jnp.ones(2), 0.5, max_outputs=1)
