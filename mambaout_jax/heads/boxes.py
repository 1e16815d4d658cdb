# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of boxes: overlap, the deltas that heads predict, clipping.

A box is (x1, y1, x2, y2) in pixels, its width x2 - x1: nowhere is 1 added. All is computed in at
least float32 and has the numbers of mmdet 3.3.0 (`bbox_overlaps`, `DeltaXYWHBBoxCoder`).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from mambaout_jax.layers.precision import at_least_float32

RPN_STDS = (1.0, 1.0, 1.0, 1.0)  # of the deltas from anchors
ROI_STDS = (0.1, 0.1, 0.2, 0.2)  # of those from proposals
MAX_LOG_RATIO = math.log(1000 / 16)  # to which predicted log ratios of sides are cut, both ways
_SMALLEST_UNION = 1e-6


def box_iou(a: Float[ArrayLike, "*B N 4"], b: Float[ArrayLike, "*B M 4"]) -> Float[Array, "*B N M"]:
    """Intersection over union of every box of `a` with every one of `b`; 0 with an empty box.

    Each operation is rounded by itself, as in mmdet: two overlaps that are equal there are so here.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    left, top, right, bottom = (
        choose(a[..., :, None, i], b[..., None, :, i])
        for i, choose in enumerate((jnp.maximum, jnp.maximum, jnp.minimum, jnp.minimum))
    )
    sides = jnp.maximum(right - left, 0), jnp.maximum(bottom - top, 0)  # (*B, N, M)
    intersection = _rounded(sides[0] * sides[1])
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - intersection
    return intersection / jnp.maximum(union, _SMALLEST_UNION)


def box_area(boxes: Float[ArrayLike, "*B 4"]) -> Float[Array, "*B"]:
    """Width times height, in pixels²."""
    boxes = at_least_float32(boxes)
    return _rounded((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def _rounded(product: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The product itself; it keeps a compiler from rounding it only after what is added to it."""
    return jnp.minimum(product, jnp.finfo(product.dtype).max)


def encode(
    boxes: Float[ArrayLike, "*B 4"],
    targets: Float[ArrayLike, "*B 4"],
    stds: tuple[float, float, float, float],
) -> Float[Array, "*B 4"]:
    """The deltas with which `decode` makes the targets of the boxes.

        dx = (target's centre - box's centre) / box's width      dw = log(target's width / box's)

    and likewise in y, each divided by its standard deviation.

    Args:
        boxes: proposals or anchors. Where a side of one or of its target is not above 0, as in
            padded rows, the deltas are 0.
        targets: the boxes to be made of them.
        stds: standard deviations of dx, dy, dw, dh.
    """
    boxes, targets = at_least_float32(boxes), at_least_float32(targets)
    (centres, sizes), (to_centres, to_sizes) = (
        _centres_and_sizes(boxes),
        _centres_and_sizes(targets),
    )
    proper = ((sizes > 0) & (to_sizes > 0)).all(axis=-1, keepdims=True)
    # Replaced before they divide, so that gradients of empty boxes are no NaN either.
    sizes, to_sizes = jnp.where(proper, sizes, 1), jnp.where(proper, to_sizes, 1)
    shifts = jnp.where(proper, (to_centres - centres) / sizes, 0)
    deltas = jnp.concatenate((shifts, jnp.log(to_sizes / sizes)), axis=-1)
    return deltas / _row(stds, deltas)


def decode(
    boxes: Float[ArrayLike, "*B 4"],
    deltas: Float[ArrayLike, "*B 4"],
    stds: tuple[float, float, float, float],
) -> Float[Array, "*B 4"]:
    """The boxes that deltas make of boxes: the inverse of `encode`.

    dw and dh, once multiplied by their standard deviations, are cut to ±`MAX_LOG_RATIO`.

    Args:
        boxes: proposals or anchors.
        deltas: what a head predicts for each of them.
        stds: standard deviations of dx, dy, dw, dh.
    """
    boxes, deltas = at_least_float32(boxes), at_least_float32(deltas)
    deltas = deltas * _row(stds, deltas)
    centres, sizes = _centres_and_sizes(boxes)
    centres = centres + sizes * deltas[..., :2]
    sizes = sizes * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return jnp.concatenate((centres - sizes / 2, centres + sizes / 2), axis=-1)


def clip(
    boxes: Float[ArrayLike, "*B N 4"], image_shape: Num[ArrayLike, "*C 2"]
) -> Float[Array, "*B N 4"]:
    """Boxes cut off at the edges of their image, [0, W] x [0, H].

    Args:
        boxes: boxes of each image.
        image_shape: (H, W) of each image, or one (2,) for all of them.
    """
    boxes = at_least_float32(boxes)
    height_width = jnp.asarray(image_shape).astype(boxes.dtype)
    limits = jnp.concatenate((height_width[..., ::-1],) * 2, axis=-1)[..., None, :]  # (W, H, W, H)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def _centres_and_sizes(
    boxes: Float[Array, "*B 4"],
) -> tuple[Float[Array, "*B 2"], Float[Array, "*B 2"]]:
    first, second = boxes[..., :2], boxes[..., 2:]
    return (first + second) / 2, second - first


def _row(stds: tuple[float, ...], like: Array) -> Float[Array, "..."]:
    """The standard deviations as an array of the rank and dtype of another."""
    return jnp.asarray(stds, like.dtype).reshape((1,) * (like.ndim - 1) + (4,))
