# SPDX-License-Identifier: Apache-2.0
"""Top-k hits and cross-entropy of classifiers, with several right classes and chosen competitors.

Of equal logits the lower class counts as likelier, as in argmax, so that a constant output is not a
hit for every class; NaN is a miss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rank_of_right(
    logits: Float[Array, "B K"], right: Bool[Array, "B K"], competing: Bool[Array, "B K"]
) -> Int[Array, "B"]:
    """How many competing classes are likelier than the likeliest right one; 0 is a top-1 hit."""
    classes = jnp.arange(logits.shape[-1])
    of_right = jnp.where(right, logits, -jnp.inf)
    best = jnp.argmax(of_right, axis=-1, keepdims=True)  # the first of equals
    own = jnp.max(of_right, axis=-1, keepdims=True)
    # "Not at most" instead of "above" makes NaN a miss.
    likelier = ~(logits <= own) | ((logits == own) & (classes[None] < best))
    return jnp.sum(likelier & competing, axis=-1)


def hit_sums(
    logits: Float[Array, "B K"],
    right: Bool[Array, "B K"],
    competing: Bool[Array, "B K"],
    mask: Bool[Array, "B"],
) -> dict[str, Float[Array, ""]]:
    """Sums over a batch: cross-entropy in nats, top-1 and top-5 hits, examples that count.

    An example hits where the likeliest, or one of the five likeliest, of the competing classes is
    right. Its cross-entropy is that of all right classes together.

    Args:
        logits: unnormalised scores, computed with in at least float32.
        right: the right classes; an example without any does not count.
        competing: the classes among which the probabilities are distributed.
        mask: False where an example only fills the batch up.

    Returns:
        `loss`, `top1`, `top5` and `count`.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counts = (mask & right.any(-1)).astype(logits.dtype)
    rank = rank_of_right(logits, right, competing)
    total = jax.nn.logsumexp(jnp.where(competing, logits, -jnp.inf), axis=-1)
    losses = total - jax.nn.logsumexp(jnp.where(right, logits, -jnp.inf), axis=-1)
    return {
        "loss": jnp.sum(jnp.where(counts > 0, losses, 0)),
        "top1": jnp.sum((rank < 1) * counts),
        "top5": jnp.sum((rank < 5) * counts),
        "count": jnp.sum(counts),
    }
