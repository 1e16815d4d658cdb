# SPDX-License-Identifier: Apache-2.0
"""What Mask R-CNN is trained towards: which boxes stand for which objects, and their masks.

All has the numbers of mmdet 3.3.0: `MaxIoUAssigner`, `RandomSampler`, and `crop_and_resize` of
`BitmapMasks`. Objects are padded to a common number, so that shapes are static: labels of rows that
are none are -1. Nothing here is differentiated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mambaout_jax.heads.boxes import ROI_STDS, RPN_STDS, box_iou, encode
from mambaout_jax.kernels.roi_align import bin_weights

NEGATIVE, IGNORED = -1, -2  # matches of candidates that stand for no object

MASK_SIDE = 28

_ANCHORS = 256  # sampled in each image, at most half of them positive
_IMAGE_MULTIPLE = 32  # pixels to which an image is padded, if alone
_MASKS_AT_ONCE = 8  # unpacked bitmaps of each image: bounds memory

# Priorities in [0, 1), by which candidates of each image are sampled: (stage, matched) -> (B, N).
Draw = Callable[[str, Int[Array, "B N"]], Float[Array, "B N"]]


class Samples(NamedTuple):
    """Candidates to learn from, of each image: positives first, then negatives, then none.

    Attributes:
        index: which candidates.
        matched: the object that a positive stands for; 0 in other rows.
        positive: whether a row stands for an object.
        counted: False in rows for which no candidate was left.
    """

    index: Int[Array, "B S"]
    matched: Int[Array, "B S"]
    positive: Bool[Array, "B S"]
    counted: Bool[Array, "B S"]


class SampledRegions(NamedTuple):
    """Regions that the box and mask heads learn from, positives first.

    Attributes:
        boxes: in pixels of the image.
        labels: class of the object, `num_classes` for background, -1 in rows that do not count.
        deltas: what makes the object's box of the region, 0 unless positive.
        matched, positive, counted: as in `Samples`.
    """

    boxes: Float[Array, "B S 4"]
    labels: Int[Array, "B S"]
    deltas: Float[Array, "B S 4"]
    matched: Int[Array, "B S"]
    positive: Bool[Array, "B S"]
    counted: Bool[Array, "B S"]


def uniform_draw(keys: Key[Array, "B"]) -> Draw:
    """Independent priorities of all candidates; a key for each image, so that none reads others."""
    stages = {"anchors": 0, "regions": 1}

    def draw(stage: str, matched: Int[Array, "B N"]) -> Float[Array, "B N"]:
        def of_image(key: Key[Array, ""]) -> Float[Array, "N"]:
            return jax.random.uniform(jax.random.fold_in(key, stages[stage]), matched.shape[1:])

        return jax.vmap(of_image)(keys)

    return draw


def assign(
    boxes: Float[Array, "_ N 4"],
    allowed: Bool[Array, "B N"],
    truths: Float[Array, "B M 4"],
    labels: Int[Array, "B M"],
    *,
    positive: float,
    negative: float,
    least: float,
) -> Int[Array, "B N"]:
    """Matches candidates with objects by their overlap (IoU).

    A candidate whose best overlap is at least `positive` is matched with that object, the first of
    equal ones; one whose best is below `negative` stands for background. Then every object takes
    all candidates that tie at its best overlap, if that is at least `least`, also from objects
    before it. Tied is exact equality: `box_iou` rounds alike wherever it is computed.

    Objects are taken one after the other, so that no matrix of overlaps is kept: of COCO's anchors
    with 100 objects it would have 107 MB an image.

    Args:
        boxes: candidates of each image, or (1, N, 4) the same of all.
        allowed: False where a candidate is not to be used at all.
        truths, labels: the objects; those with a label below 0 are none.

    Returns:
        The number of an object, `NEGATIVE` or `IGNORED`.
    """
    present = labels >= 0
    # Rows after the last object of the whole batch are not looked at.
    count = jnp.max(jnp.where(present, jnp.arange(labels.shape[1])[None] + 1, 0), initial=0)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, match, forced = carry
        truth = jax.lax.dynamic_slice_in_dim(truths, i, 1, axis=1)  # (B, 1, 4)
        here = jax.lax.dynamic_slice_in_dim(present, i, 1, axis=1)  # (B, 1)
        candidates = jnp.broadcast_to(boxes, (*allowed.shape, 4))
        overlap = jnp.where(allowed & here, box_iou(candidates, truth)[..., 0], -1)  # (B, N)
        top = overlap.max(axis=1, keepdims=True)
        forced = jnp.where((overlap == top) & (top >= least), i, forced)
        match = jnp.where(overlap > best, i, match)
        return jnp.maximum(best, overlap), match, forced

    none = jnp.full(allowed.shape, NEGATIVE, jnp.int32)
    dtype = jnp.promote_types(jnp.result_type(boxes, truths), jnp.float32)
    start = (jnp.zeros(allowed.shape, dtype), none, none)
    best, match, forced = jax.lax.fori_loop(0, count, step, start)
    matched = jnp.where(best < negative, NEGATIVE, IGNORED)
    matched = jnp.where(best >= positive, match, matched)
    matched = jnp.where(forced >= 0, forced, matched)
    return jnp.where(allowed, matched, IGNORED)


def sample(
    matched: Int[Array, "B N"], priority: Float[Array, "B N"], *, number: int, positives: int
) -> Samples:
    """Takes up to `positives` positive candidates and fills up to `number` with negative ones.

    Of each kind those of the highest priority are taken, the first of equal ones.

    Args:
        matched: from `assign`.
        priority: at least 0.

    Returns:
        `number` rows for each image, or as many as there are candidates.
    """
    rows = min(number, matched.shape[1])
    most = min(positives, rows)

    def highest(kind: Bool[Array, "B N"], count: int) -> tuple[Array, Array]:
        value, index = jax.lax.top_k(jnp.where(kind, priority, -1), count)
        return index, value >= 0

    chosen, are_chosen = highest(matched >= 0, most)
    others, are_others = highest(matched == NEGATIVE, rows)
    count = are_chosen.sum(axis=1, keepdims=True)  # (B, 1)
    row = jnp.arange(rows)[None]  # (1, rows)
    positive = row < count
    place = jnp.where(positive, row, most + row - count)  # (B, rows)

    def packed(first: Array, second: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate((first, second), axis=1), place, axis=1)

    index, counted = packed(chosen, others), packed(are_chosen, are_others)
    objects = jnp.maximum(jnp.take_along_axis(matched, index, axis=1), 0)
    return Samples(index, jnp.where(positive, objects, 0), positive, counted)


def inside_image(
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_shapes: Int[Array, "B 2"],
    anchors_per_cell: int = 3,
) -> Bool[Array, "B N"]:
    """Whether the cell of an anchor belongs to its image, padded to a multiple of 32 pixels.

    Others belong to the padding that an image has beside larger ones. Anchors themselves may reach
    over the edge.

    Args:
        map_sizes: (H, W) of each level.
        image_shapes: (H, W) of each image in pixels.

    Returns:
        In the order of `rpn.anchors`.
    """
    padded = -(-image_shapes // _IMAGE_MULTIPLE) * _IMAGE_MULTIPLE
    levels = []
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        cells = -(-padded // stride)  # (B, 2)
        rows = jnp.arange(height)[None] < cells[:, :1]  # (B, H)
        columns = jnp.arange(width)[None] < cells[:, 1:]  # (B, W)
        inside = rows[:, :, None] & columns[:, None, :]  # (B, H, W)
        levels.append(inside.reshape(inside.shape[0], -1).repeat(anchors_per_cell, axis=1))
    return jnp.concatenate(levels, axis=1)


def sample_anchors(
    anchors: Float[Array, "N 4"],
    inside: Bool[Array, "B N"],
    truths: Float[Array, "B M 4"],
    labels: Int[Array, "B M"],
    draw: Draw,
) -> tuple[Samples, Float[Array, "B S 4"]]:
    """The anchors that the RPN learns from, and the deltas of the positive ones, 0 elsewhere."""
    matched = assign(
        anchors[None], inside, truths, labels, positive=0.7, negative=0.3, least=0.3
    )  # (B, N)
    priority = draw("anchors", matched)
    samples = sample(matched, priority, number=_ANCHORS, positives=_ANCHORS // 2)
    return samples, _deltas(anchors[samples.index], truths, samples, RPN_STDS)


def sample_regions(
    proposals: Float[Array, "B N 4"],
    valid: Bool[Array, "B N"],
    truths: Float[Array, "B M 4"],
    labels: Int[Array, "B M"],
    num_classes: int,
    draw: Draw,
    *,
    number: int,
) -> SampledRegions:
    """The regions that the box and mask heads learn from.

    Candidates are the objects themselves and then the proposals, at most a quarter positive.

    Args:
        valid: False where a proposal is none.
        number: regions of each image.
    """
    matched = assign(proposals, valid, truths, labels, positive=0.5, negative=0.5, least=0.5)
    own = jnp.where(labels >= 0, jnp.arange(labels.shape[1], dtype=jnp.int32)[None], IGNORED)
    matched = jnp.concatenate((own, matched), axis=1)  # (B, M + N)
    candidates = jnp.concatenate((truths, proposals), axis=1)  # (B, M + N, 4)
    priority = draw("regions", matched)
    samples = sample(matched, priority, number=number, positives=number // 4)
    boxes = jnp.take_along_axis(candidates, samples.index[..., None], axis=1)
    boxes = jnp.where(samples.counted[..., None], boxes, 0)
    classes = jnp.take_along_axis(labels, samples.matched, axis=1)
    classes = jnp.where(samples.positive, classes, num_classes)
    classes = jnp.where(samples.counted, classes, -1)
    deltas = _deltas(boxes, truths, samples, ROI_STDS)
    return SampledRegions(boxes, classes, deltas, *samples[1:])


def mask_targets(
    masks: UInt8[Array, "B M H packed"], boxes: Float[Array, "B P 4"], matched: Int[Array, "B P"]
) -> Bool[Array, "B P 28 28"]:
    """The object's mask in each region: RoIAlign of the full bitmap, at least 0.5.

    RoIAlign (aligned, as many samples as pixels) is separable, so that each target is

        rows (28, H) @ bitmap (H, W) @ columns (W, 28)

    Args:
        masks: bitmaps in pixels of the image, `np.packbits` along the width.
        boxes: regions.
        matched: the object of each region.
    """
    bits = jnp.arange(7, -1, -1, dtype=jnp.uint8)  # the first pixel is the highest bit
    height, width = masks.shape[2], 8 * masks.shape[3]

    def weights(start: Array, side: Array, length: int) -> Array:
        pixels = jnp.arange(length)
        of_box = jax.vmap(lambda x, n: bin_weights(x, n, pixels, length, MASK_SIDE, 0))
        return of_box(start, side)

    def target(region: tuple[Array, Array]) -> Bool[Array, "B 28 28"]:
        box, which = region  # (B, 4), (B,)
        packed = jnp.take_along_axis(masks, which[:, None, None, None], axis=1)[:, 0]
        bitmap = packed[..., None] >> bits[None, None, None] & 1  # (B, H, W / 8, 8)
        bitmap = bitmap.reshape(-1, height, width).astype(box.dtype)
        rows = weights(box[:, 1] - 0.5, box[:, 3] - box[:, 1], height)  # (B, 28, H)
        columns = weights(box[:, 0] - 0.5, box[:, 2] - box[:, 0], width)  # (B, 28, W)
        exact = jax.lax.Precision.HIGHEST
        soft = jnp.einsum("bhw,bjw->bhj", bitmap, columns, precision=exact)
        return jnp.einsum("bih,bhj->bij", rows, soft, precision=exact) >= 0.5

    by_region = (boxes.swapaxes(0, 1), matched.swapaxes(0, 1))
    return jax.lax.map(target, by_region, batch_size=_MASKS_AT_ONCE).swapaxes(0, 1)


def _deltas(
    boxes: Float[Array, "B S 4"],
    truths: Float[Array, "B M 4"],
    samples: Samples,
    stds: tuple[float, float, float, float],
) -> Float[Array, "B S 4"]:
    targets = jnp.take_along_axis(truths, samples.matched[..., None], axis=1)
    return jnp.where(samples.positive[..., None], encode(boxes, targets, stds), 0)
