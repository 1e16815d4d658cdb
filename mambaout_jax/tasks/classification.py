# SPDX-License-Identifier: Apache-2.0
"""Image classification: cross-entropy against soft targets, top-1 and top-5."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from mambaout_jax.tasks.task import Batch, Sums


def soft_targets(
    labels: Int[Array, "B"], num_classes: int, label_smoothing: float = 0.0
) -> Float[Array, "B num_classes"]:
    """One-hot targets, a share of them spread over all classes (Szegedy et al. 2016)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def predict(
    model: nn.Module, variables: Mapping[str, Any], images: Float[ArrayLike, "B H W C"]
) -> Float[Array, "B num_classes"]:
    """Class probabilities of normalised images."""
    logits: Any = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification into `num_classes`.

    Batches hold `image` (B, H, W, C), normalised; in training `target` (B, num_classes), in
    evaluation `label` (B,) and `mask` (B,).
    """

    num_classes: int

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Array,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """Mean cross-entropy against `target`; see `Task.loss`."""
        logits, updated = model.apply(
            {"params": params, **collections},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(collections),
        )
        losses = optax.softmax_cross_entropy(logits, batch["target"])  # (B,)
        sums = {"loss": losses.sum(), "count": jnp.asarray(losses.size, losses.dtype)}
        return losses.mean(), (dict(updated), sums)

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Sums:
        """Sums of cross-entropy and of hits among the five likeliest classes; see `Task`."""
        logits: Any = model.apply(variables, batch["image"], train=False)
        labels, mask = batch["label"], batch["mask"].astype(logits.dtype)
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        # Ties go to the lower class, as in argmax, so that a constant output is no hit for all.
        before = jnp.arange(self.num_classes)[None, :] < labels[:, None]
        # "Not below" instead of "above" makes NaN a miss.
        rank = jnp.sum(~(logits <= own) | ((logits == own) & before), axis=-1)  # (B,)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "loss": jnp.sum(losses * mask),
            "top1": jnp.sum((rank < 1) * mask),
            "top5": jnp.sum((rank < 5) * mask),
            "count": jnp.sum(mask),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss; top-1 and top-5 in percent."""
        count = sums["count"]
        scale = {"loss": 1.0, "top1": 100.0, "top5": 100.0}
        return {name: factor * sums[name] / count for name, factor in scale.items() if name in sums}
