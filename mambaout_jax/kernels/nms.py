# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of boxes, exactly and with static shapes.

Boxes are taken by falling score, a tile at a time. Those of a tile that no kept box suppresses are
thinned among themselves by iterating

    keep ← allowed and not suppressed by an earlier box of `keep`

from `keep` = allowed until nothing changes: the first box is right at once, and every round makes
at least one more right, so that the result is the sequential one. Real boxes need a few rounds.
Only kept boxes are compared with later tiles, and the walk ends when enough are kept.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

_TILE = 256


def nms(
    boxes: Float[Array, "R 4"],
    scores: Float[Array, "R"],
    threshold: float,
    *,
    groups: Int[Array, "R"] | None = None,
    max_outputs: int,
) -> Int[Array, "_"]:
    """The indices of boxes that overlap no kept box of a higher score too much.

    In order of falling score a box is kept unless its IoU with a kept box of its group is greater
    than `threshold`; at equality it is kept. Equal to torchvision's CPU kernel to the bit: the same
    operations in the boxes' own dtype, compared with the threshold in double precision. Of equal
    scores the lower index comes first.

    Args:
        boxes: x1 y1 x2 y2; computed in float32 at least.
        scores: rows of -inf or NaN, which padding should have, are never kept.
        threshold: an IoU.
        groups: boxes of different groups (classes, levels) do not suppress each other.
        max_outputs: indices to return, no more than of that many kept boxes are looked for.

    Returns:
        int32 (max_outputs,), padded with -1 at the end. Nothing to differentiate. Under `jax.vmap`
        all lists are walked together.

    Raises:
        ValueError: wrong shapes or dtypes, a threshold that is no finite number, `max_outputs`
            below 1.
    """
    _check(boxes, scores, threshold, groups, max_outputs)
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    count = boxes.shape[0]
    if count == 0:
        return jnp.full(max_outputs, -1, jnp.int32)
    tile = min(_TILE, count)
    listed = scores > -jnp.inf  # false for NaN
    order = jnp.argsort(jnp.where(listed, -scores, jnp.inf), stable=True).astype(jnp.int32)
    padding = (0, -count % tile)
    candidates = _Boxes(
        jnp.pad(boxes[order], (padding, (0, 0))),
        jnp.pad(_areas(boxes)[order], padding),
        None if groups is None else jnp.pad(jnp.asarray(groups)[order], padding),
    )
    kept = _walk(candidates, listed.sum(dtype=jnp.int32), _below(threshold, boxes.dtype), tile,
                 max_outputs)  # fmt: skip
    return jnp.where(kept >= 0, order[jnp.maximum(kept, 0)], -1)


def _check(boxes, scores, threshold, groups, max_outputs):
    got = f"nms got boxes {boxes.dtype}{boxes.shape} and scores {scores.dtype}{scores.shape}: "
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(got + "they must be (R, 4) and (R,); jax.vmap takes several lists at once")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (boxes, scores)):
        raise ValueError(got + "both dtypes must be floating; cast them first")
    if groups is not None and (
        groups.shape != scores.shape or not jnp.issubdtype(groups.dtype, jnp.integer)
    ):
        raise ValueError(f"{got}groups {groups.dtype}{groups.shape} must be integers (R,), or None")
    if not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
        raise ValueError(f"{got}threshold={threshold!r}; use a finite number, an IoU from 0 to 1")
    if not isinstance(max_outputs, (int, np.integer)) or max_outputs < 1:
        raise ValueError(f"{got}max_outputs={max_outputs!r}; use a whole number of 1 or more")


def _below(threshold, dtype):
    """The largest number of a dtype that is not above the threshold: x > both, or neither."""
    rounded = np.asarray(threshold, dtype)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.asarray(-np.inf, dtype))
    return rounded


class _Boxes(NamedTuple):
    boxes: jax.Array  # (R, 4)
    areas: jax.Array  # (R,)
    groups: jax.Array | None  # (R,)


def _areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _take(x, start, size):
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), x)


def _suppresses(a, b, threshold):
    """Whether a box of `a` suppresses one of `b`: (boxes of a, boxes of b)."""
    corner = jnp.maximum(a.boxes[:, None, :2], b.boxes[None, :, :2])
    sides = jnp.minimum(a.boxes[:, None, 2:], b.boxes[None, :, 2:]) - corner
    sides = jnp.maximum(sides, 0)
    # The outer maximum changes no value: it keeps compilers from fusing this product with the
    # difference below, which would round once where torchvision rounds twice.
    intersection = jnp.maximum(sides[..., 0] * sides[..., 1], 0)
    union = (a.areas[:, None] + b.areas[None]) - intersection
    found = intersection / union > threshold
    return found if a.groups is None else found & (a.groups[:, None] == b.groups[None])


def _walk(candidates, listed, threshold, tile, max_outputs):
    """Positions (max_outputs,) of kept candidates, of which the first `listed` count; else -1."""
    slots = -(-max_outputs // tile) * tile

    def going_on(state):
        i, count, _, _ = state
        return (i * tile < listed) & (count < max_outputs)

    def step(state):
        i, count, kept, positions = state
        these = _take(candidates, i * tile, tile)
        number = i * tile + jnp.arange(tile, dtype=jnp.int32)

        def compare(j, allowed):
            earlier = _take(kept, j * tile, tile)
            exists = j * tile + jnp.arange(tile, dtype=jnp.int32) < count
            return allowed & ~(_suppresses(earlier, these, threshold) & exists[:, None]).any(0)

        allowed = lax.fori_loop(0, -(-count // tile), compare, number < listed)
        keep = _thin(allowed, _suppresses(these, these, threshold))
        slot = jnp.where(keep, count + jnp.cumsum(keep, dtype=jnp.int32) - 1, slots)
        kept = jax.tree.map(lambda k, t: k.at[slot].set(t, mode="drop"), kept, these)
        positions = positions.at[slot].set(number, mode="drop")
        return i + 1, count + keep.sum(dtype=jnp.int32), kept, positions

    kept = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), candidates)
    positions = jnp.full(slots, -1, jnp.int32)
    state = lax.while_loop(going_on, step, (jnp.int32(0), jnp.int32(0), kept, positions))
    return state[-1][:max_outputs]


def _thin(allowed, suppresses):
    """What remains of a tile, whose boxes suppress later ones of it (earlier, later)."""
    suppresses = jnp.triu(suppresses, 1)

    def thinned(keep):
        return allowed & ~(suppresses & keep[:, None]).any(0)

    def step(state):
        keep, _ = state
        following = thinned(keep)
        return following, (following != keep).any()

    return lax.while_loop(lambda state: state[1], step, (allowed, jnp.array(True)))[0]
