# SPDX-License-Identifier: Apache-2.0
"""The five losses of Mask R-CNN, with the divisors of mmdet 3.3.0.

All sums go over the whole batch before they are divided, so that the losses do not depend on how
the batch is split over devices; mmdet divides on each device by itself.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mambaout_jax.heads.mask_rcnn import Detector
from mambaout_jax.heads.targets import (
    Draw,
    SampledRegions,
    Samples,
    inside_image,
    mask_targets,
    sample_anchors,
    sample_regions,
)

Losses = dict[str, Float[Array, ""]]
Maps = tuple[Float[Array, "B _ _ F"], ...]


def detection_losses(
    detector: Detector, maps: Maps, batch: Mapping[str, Array], draw: Draw, number: int
) -> Losses:
    """The losses of a batch: `rpn_class`, `rpn_box`, `class`, `box` and `mask`.

    Args:
        detector: bound to its parameters, as by `nn.apply`.
        maps: its `pyramid` of the images.
        batch: `image_shape` (B, 2), (H, W) of each image without its padding, and its objects:
            `boxes` (B, M, 4), `labels` (B, M), below 0 in rows without one, and `masks`, packed
            (`mask_targets`).
        draw: by which candidates are sampled.
        number: regions of each image for the box and mask heads, at most a quarter positive.
    """
    shapes, truths, labels = (batch[name] for name in ("image_shape", "boxes", "labels"))
    outputs = detector.rpn_outputs(maps)
    sizes = [(x.shape[1], x.shape[2]) for x in maps]
    samples, targets = sample_anchors(
        jnp.concatenate(outputs.anchors),
        inside_image(sizes, detector.strides, shapes),
        truths,
        labels,
        draw,
    )
    scores, deltas = (jnp.concatenate(levels, axis=1) for levels in outputs[:2])
    losses = rpn_losses(scores, deltas, samples, targets)

    proposals, valid = detector.propose(outputs, shapes, train=True)
    regions = sample_regions(
        proposals, valid, truths, labels, detector.num_classes, draw, number=number
    )
    losses |= box_losses(*detector.classify(maps, regions.boxes), regions)

    boxes, classes, matched, positive = (
        column[:, : number // 4]  # where all positive ones are
        for column in (regions.boxes, regions.labels, regions.matched, regions.positive)
    )
    logits = detector.segment(maps, boxes, jnp.where(positive, classes, 0))
    return losses | mask_loss(logits, mask_targets(batch["masks"], boxes, matched), positive)


def rpn_losses(
    scores: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    samples: Samples,
    targets: Float[Array, "B S 4"],
) -> Losses:
    """Binary cross-entropy of the sampled anchors and L1 of the positive ones' deltas.

    Both sums are divided by the number of samples; an image counts at least one of each kind, also
    where it has none.

    Args:
        scores: logits of all anchors.
        deltas: predicted for all anchors.
        samples, targets: from `sample_anchors`.
    """
    scores = jnp.take_along_axis(scores, samples.index, axis=1)
    deltas = jnp.take_along_axis(deltas, samples.index[..., None], axis=1)
    losses = optax.sigmoid_binary_cross_entropy(scores, samples.positive.astype(scores.dtype))
    kinds = samples.positive, samples.counted & ~samples.positive
    divisor = sum(jnp.maximum(kind.sum(axis=1), 1).sum() for kind in kinds)
    return {
        "rpn_class": _sum(losses, samples.counted) / divisor,
        "rpn_box": _sum(jnp.abs(deltas - targets), samples.positive[..., None]) / divisor,
    }


def box_losses(
    logits: Float[Array, "B S classes"], deltas: Float[Array, "B S K 4"], regions: SampledRegions
) -> Losses:
    """Cross-entropy of the regions and L1 of the positive ones' deltas, those of their own class.

    Both sums are divided by the number of regions, negative ones included.

    Args:
        logits: of K classes and, last, of the background.
    """
    divisor = jnp.maximum(regions.counted.sum(), 1)
    labels = jnp.maximum(regions.labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.where(regions.positive, labels, 0)
    deltas = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    return {
        "class": _sum(losses, regions.counted) / divisor,
        "box": _sum(jnp.abs(deltas - regions.deltas), regions.positive[..., None]) / divisor,
    }


def mask_loss(
    logits: Float[Array, "B P H W"], targets: Bool[Array, "B P H W"], positive: Bool[Array, "B P"]
) -> Losses:
    """Binary cross-entropy of the positive regions' masks: the mean of all their pixels.

    Args:
        logits: of each region's own class.
        targets: from `mask_targets`.
        positive: which regions count.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    pixels = targets.shape[2] * targets.shape[3]
    divisor = jnp.maximum(positive.sum() * pixels, 1)
    return {"mask": _sum(losses, positive[..., None, None]) / divisor}


def _sum(losses: Float[Array, "..."], counts: Bool[Array, "..."]) -> Float[Array, ""]:
    """Sum of the rows that count."""
    return jnp.where(counts, losses, 0).sum()
