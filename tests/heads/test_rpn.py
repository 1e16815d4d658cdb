# SPDX-License-Identifier: Apache-2.0
"""Anchors, the head that judges them, and proposals, against mmdet's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from support.dense_goldens import load_dense

from mambaout_jax.heads.rpn import RPN, anchors, proposals, scored_proposals

STRIDES = (4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def golden():
    """Arrays, notes, and what our head makes of the golden's maps."""
    arrays, meta, state = load_dense("rpn")
    maps = tuple(
        jnp.asarray(input_of((2, 256, *size), i).transpose(0, 2, 3, 1))
        for i, size in enumerate(meta["level_shapes"])
    )
    names = {"hidden": "conv.0.0", "score": "cls_logits", "delta": "bbox_pred"}
    params = {
        ours: {
            "kernel": state[f"{theirs}.weight"].transpose(2, 3, 1, 0),
            "bias": state[f"{theirs}.bias"],
        }
        for ours, theirs in names.items()
    }
    return arrays, meta, jax.jit(RPN().apply)({"params": params}, maps)


def sizes_of(meta):
    return [tuple(size) for size in meta["level_shapes"]]


def test_anchors_are_mmdets():
    arrays, meta, _ = load_dense("anchors")
    levels = jax.jit(lambda: anchors(sizes_of(meta), STRIDES))()
    for level, base in zip(levels, arrays["mmdet_base"], strict=True):
        np.testing.assert_allclose(level[:3], base, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(levels), arrays["mmdet"], atol=1e-4)


def test_scores_and_deltas_are_mmdets(golden):
    arrays, _, outputs = golden
    for i, (scores, deltas) in enumerate(zip(*outputs, strict=True)):
        for ours, kind in ((scores, "cls"), (deltas, "reg")):
            theirs = arrays[f"{kind}_p{i + 2}"]
            expected = theirs.transpose(0, 2, 3, 1).reshape(ours.shape)
            assert np.abs(ours - expected).max() <= 5e-5 * theirs.std()


@pytest.mark.parametrize("kind", ["training", pytest.param("testing", marks=pytest.mark.slow)])
def test_proposals_are_mmdets(golden, kind):
    arrays, meta, (scores, deltas) = golden
    settings = meta["settings"][kind]
    find = functools.partial(
        scored_proposals, before=settings["pre_nms_per_level"], after=settings["post_nms"]
    )
    shapes = np.array(meta["image_shapes"])

    @jax.jit
    def of_images(scores, deltas):
        levels = anchors(sizes_of(meta), STRIDES)
        return jax.vmap(find, in_axes=(0, 0, None, 0))(scores, deltas, levels, shapes)

    boxes, ranks = of_images(scores, deltas)
    for i in range(2):
        np.testing.assert_allclose(boxes[i], arrays[f"mmdet_{kind}_boxes_{i}"], atol=1e-3)
        np.testing.assert_allclose(ranks[i], arrays[f"mmdet_{kind}_scores_{i}"], atol=1e-5)


@pytest.mark.slow
def test_rows_without_a_proposal_are_marked():
    scores = (jnp.arange(12.0)[None], jnp.array(((20.0, 30.0, -200.0),)))
    # Of the first level all is moved out of the image, of the second nothing is moved.
    moved = (jnp.tile(jnp.array((10.0, 10, 0, 0)), (1, 12, 1)), jnp.zeros((1, 3, 4)))

    @jax.jit
    def find(scores, moved):
        levels = anchors(((2, 2), (1, 1)), (4, 8))
        return proposals(scores, moved, levels, np.array(((8, 8),)), before=12, after=5)

    boxes, valid = find(scores, moved)
    # All three are the whole image, once cut off: the best stands for the others.
    np.testing.assert_array_equal(valid, [[True, False, False, False, False]])
    np.testing.assert_array_equal(boxes[0, 0], [0, 0, 8, 8])
    np.testing.assert_array_equal(boxes[0, 1:], 0)


@pytest.mark.slow
def test_proposals_have_no_gradients(golden):
    _, meta, (scores, deltas) = golden
    levels = anchors(sizes_of(meta)[3:], STRIDES[3:])

    def total(deltas):
        shapes = np.array(meta["image_shapes"])
        return proposals(scores[3:], deltas, levels, shapes, before=20, after=10)[0].sum()

    for gradient in jax.jit(jax.grad(total))(deltas[3:]):
        np.testing.assert_array_equal(gradient, 0)
