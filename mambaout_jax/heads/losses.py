# SPDX-License-Identifier: Apache-2.0
"""The five losses of Mask R-CNN, with the divisors of mmdet 3.3.0.

All sums go over the whole batch before they are divided, so that the losses do not depend on how
the batch is split over devices; mmdet divides on each device by itself.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mambaout_jax.heads.targets import SampledRegions, Samples

Losses = dict[str, Float[Array, ""]]


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
    logits: Float[Array, "B P H W K"], targets: Bool[Array, "B P H W"], regions: SampledRegions
) -> Losses:
    """Binary cross-entropy of the positive regions' masks of their own class: the mean of pixels.

    Args:
        logits: of the first P regions, among which are all positive ones.
        targets: from `mask_targets`.
    """
    count = logits.shape[1]
    positive = regions.positive[:, :count]
    own = jnp.where(positive, regions.labels[:, :count], 0)
    logits = jnp.take_along_axis(logits, own[..., None, None, None], axis=-1)[..., 0]
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    pixels = targets.shape[2] * targets.shape[3]
    divisor = jnp.maximum(positive.sum() * pixels, 1)
    return {"mask": _sum(losses, positive[..., None, None]) / divisor}


def _sum(losses: Float[Array, "..."], counts: Bool[Array, "..."]) -> Float[Array, ""]:
    """Sum of the rows that count."""
    return jnp.where(counts, losses, 0).sum()
