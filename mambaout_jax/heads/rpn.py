# SPDX-License-Identifier: Apache-2.0
"""Region proposals: where in an image an object may be (Ren et al., NeurIPS 2015).

Anchors, head and proposals have the numbers of mmdet 3.3.0 (`AnchorGenerator`, `RPNHead`).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mambaout_jax.heads.boxes import RPN_STDS, clip, decode
from mambaout_jax.kernels.nms import nms
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.precision import at_least_float32, compute_dtype

_SCALE = 8  # side of a square anchor in strides
_RATIOS = (0.5, 1.0, 2.0)  # height over width
_OVERLAP = 0.7  # above which the lower of two proposals of a level is dropped
_NONE = -jnp.inf  # score of a row without a proposal


class AnchorPredictions(NamedTuple):
    """What the head says of each anchor, by level.

    Attributes:
        scores: logits, (B, anchors), at least float32.
        deltas: (B, anchors, 4), at least float32.
        anchors: (anchors, 4) in pixels.
    """

    scores: tuple[Float[Array, "B _"], ...]
    deltas: tuple[Float[Array, "B _ 4"], ...]
    anchors: tuple[Float[Array, "_ 4"], ...]


def anchors(
    map_sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[Float[Array, "_ 4"], ...]:
    """The anchors of each level, float32, in the order y, x, ratio.

    Those of pixel (y, x) are centred on (stride · x, stride · y), half a pixel before the pixel's
    own centre, have the area of a square of 8 strides and height over width 0.5, 1 and 2.

    Args:
        map_sizes: (H, W) of each map.
        strides: image pixels from one of its pixels to the next.
    """
    return tuple(
        _anchors_of(*size, stride) for size, stride in zip(map_sizes, strides, strict=True)
    )


def _anchors_of(height: int, width: int, stride: int) -> Float[Array, "_ 4"]:
    roots = np.sqrt(np.array(_RATIOS))
    half = stride * _SCALE / 2 * np.stack((1 / roots, roots), axis=-1)  # (3, 2): x, y
    base = jnp.asarray(np.concatenate((-half, half), axis=-1), jnp.float32)
    x = jnp.broadcast_to(jnp.arange(width)[None, :], (height, width))
    y = jnp.broadcast_to(jnp.arange(height)[:, None], (height, width))
    centres = stride * jnp.stack((x, y, x, y), axis=-1).astype(jnp.float32)  # (H, W, 4)
    return (centres[:, :, None] + base[None, None]).reshape(-1, 4)


class RPN(nn.Module):
    """One small head for all levels: a logit for "here is an object" and deltas of every anchor.

        y = relu(conv3x3(x)),  scores = conv1x1(y),  deltas = conv1x1(y)

    Attributes:
        channels: of the maps and of the hidden layer.
        dtype: dtype of the computation; float32 means at least float32.
    """

    channels: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ C"], ...]
    ) -> tuple[tuple[Float[Array, "B _"], ...], tuple[Float[Array, "B _ 4"], ...]]:
        """Logits and deltas of the anchors of each level, as `anchors` orders them."""
        init = nn.initializers.normal(0.01)
        options = {"dtype": compute_dtype(self.dtype), "kernel_init": init}
        hidden = Conv(self.channels, 3, padding=1, **options, name="hidden")
        score = Conv(len(_RATIOS), 1, **options, name="score")
        delta = Conv(4 * len(_RATIOS), 1, **options, name="delta")
        scores, deltas = [], []
        for x in maps:
            y = nn.relu(hidden(x))
            scores.append(at_least_float32(score(y)).reshape(y.shape[0], -1))
            deltas.append(at_least_float32(delta(y)).reshape(y.shape[0], -1, 4))
        return tuple(scores), tuple(deltas)


def proposals(
    scores: Sequence[Float[Array, "B _"]],
    deltas: Sequence[Float[Array, "B _ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    image_shapes: Int[ArrayLike, "B 2"],
    before: int,
    after: int = 1000,
) -> tuple[Float[Array, "B R 4"], Bool[Array, "B R"]]:
    """The boxes that are most likely to hold an object, by falling score, without gradients.

    Of each level the best `before`, decoded and cut off at the edges of the image; empty ones and
    those that overlap a better one of their level by more than 0.7 are dropped; then the best
    `after` of all levels.

    As in mmdet, anchors over the padding of a batch may propose, too: what they propose is cut off.
    They are only never sampled in training, see `heads.targets`.

    Args:
        scores: logits of each level.
        deltas: deltas of each level.
        anchors: anchors of each level.
        image_shapes: (H, W) of each image without its padding.
        before: candidates of each level.
        after: R, rows that come out.

    Returns:
        Boxes, 0 in rows without a proposal, and which rows have one.
    """
    of_image = functools.partial(scored_proposals, before=before, after=after)
    batched = jax.vmap(of_image, in_axes=(0, 0, None, 0))
    boxes, kept = batched(tuple(scores), tuple(deltas), tuple(anchors), jnp.asarray(image_shapes))
    return boxes, kept > _NONE


def scored_proposals(
    scores: Sequence[Float[Array, "_"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    image_shape: Int[Array, "2"],
    before: int,
    after: int,
) -> tuple[Float[Array, "R 4"], Float[Array, "R"]]:
    """`proposals` of one image with their probabilities, -inf in rows without one."""
    levels = [
        _candidates(*level, image_shape, before)
        for level in zip(*lax.stop_gradient((scores, deltas)), anchors, strict=True)
    ]
    boxes, ranks = (jnp.stack(parts) for parts in zip(*levels, strict=True))  # (levels, before, …)
    each = functools.partial(nms, threshold=_OVERLAP, max_outputs=min(before, after))
    kept = jax.vmap(each)(boxes, ranks)  # (levels, ·), -1: none
    ranks = jnp.where(kept < 0, _NONE, jnp.take_along_axis(ranks, kept, axis=1))
    boxes = jnp.take_along_axis(boxes, kept[..., None], axis=1)
    best, order = lax.top_k(ranks.reshape(-1), min(after, ranks.size))
    boxes = jnp.where(best[:, None] > _NONE, boxes.reshape(-1, 4)[order], 0)
    missing = after - best.size
    return (
        jnp.pad(boxes, ((0, missing), (0, 0))),
        jnp.pad(best, (0, missing), constant_values=_NONE),
    )


def _candidates(
    scores: Float[Array, "A"],
    deltas: Float[Array, "A 4"],
    anchors: Float[Array, "A 4"],
    image_shape: Int[Array, "2"],
    before: int,
) -> tuple[Float[Array, "R 4"], Float[Array, "R"]]:
    """The best boxes of a level and their probabilities, in `before` rows."""
    best, order = lax.top_k(jax.nn.sigmoid(scores), min(before, scores.shape[0]))
    boxes = clip(decode(anchors[order], deltas[order], RPN_STDS), image_shape)
    proper = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    missing = before - order.shape[0]
    return (
        jnp.pad(jnp.where(proper[:, None], boxes, 0), ((0, missing), (0, 0))),
        jnp.pad(jnp.where(proper, best, _NONE), (0, missing), constant_values=_NONE),
    )
