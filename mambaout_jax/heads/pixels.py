# SPDX-License-Identifier: Apache-2.0
"""From logits at stride 4 to each pixel of an image: the loss, and the likeliest class.

Logits of every pixel take much memory: 157 MB in float32 for 150 classes and 512 x 512 pixels.
Bilinear resizing is a product with one small matrix along each axis, so any rows of pixels can be
made by themselves: what is wanted of them is computed some rows at a time, also in the backward
pass, and the whole is never kept. Several resizings in a row, and crops whose overlaps are
averaged, are such a product as well.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from mambaout_jax.layers.resize import linear_weights

_NUMBERS_AT_ONCE = 2**22  # logits of one image: 16 MB in float32


class Enlarged(NamedTuple):
    """Logits of pixels, not yet computed: rows · logits · columnsᵀ for each class.

    Attributes:
        logits: of a map.
        rows: weight of each row of the map in each row of pixels.
        columns: likewise.
    """

    logits: Float[Array, "B h w K"]
    rows: Float[np.ndarray, "H h"]
    columns: Float[np.ndarray, "W w"]


def enlarge(logits: Float[Array, "B h w K"], *sizes: tuple[int, int]) -> Enlarged:
    """Bilinear resizing to each of the sizes (H, W), one after the other, as `resize_linear`."""
    height, width = logits.shape[1:3]
    return Enlarged(logits, *_resized(np.eye(height), np.eye(width), sizes))


class Crops(NamedTuple):
    """Where crops of a size lie in an image; mmseg's for sliding inference.

    Attributes:
        image: (H, W) of the image.
        crop: (h, w) of all crops: the image's side where that is shorter.
        tops, lefts: every top goes with every left.
    """

    image: tuple[int, int]
    crop: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, image: tuple[int, int], side: int, stride: int) -> "Crops":
        """Squares `stride` pixels apart; the last ones end where the image ends."""
        height, width = (min(side, n) for n in image)
        tops, lefts = (
            tuple(min(i * stride, n - m) for i in range(-(-(n - m) // stride) + 1))
            for n, m in zip(image, (height, width), strict=True)
        )
        return cls(image, (height, width), tops, lefts)

    def cut(self, images: Float[Array, "B H W C"]) -> Float[Array, "N h w C"]:
        """The crops of all images: those of one top, row by row, after those of the one before."""
        (height, width), places = self.crop, itertools.product(self.tops, self.lefts)
        crops = [images[:, i : i + height, j : j + width] for i, j in places]
        return jnp.concatenate(crops)

    def average(self, logits: Float[Array, "N h w K"], *sizes: tuple[int, int]) -> Enlarged:
        """The mean, where crops overlap, of their logits resized to their size.

        Args:
            logits: of the crops in the order of `cut`.
            sizes: (H, W) to which the whole is then resized.
        """
        height, width, classes = logits.shape[1:]
        down, across = len(self.tops), len(self.lefts)
        x = logits.reshape(down, across, -1, height, width, classes).transpose(2, 0, 3, 1, 4, 5)
        x = x.reshape(-1, down * height, across * width, classes)  # (B, H', W', K)
        rows, columns = (
            _placed(linear_weights(n, m), starts, size)
            for n, m, starts, size in zip(
                (height, width), self.crop, (self.tops, self.lefts), self.image, strict=True
            )
        )
        return Enlarged(x, *_resized(rows, columns, sizes))


def _placed(
    weights: Float[np.ndarray, "m n"], starts: tuple[int, ...], size: int
) -> Float[np.ndarray, "size N"]:
    """One matrix for crops side by side, along one axis, that averages where they overlap."""
    side, n = weights.shape
    placed = np.zeros((size, len(starts) * n))
    covered = np.zeros((size, 1))
    for i, start in enumerate(starts):
        placed[start : start + side, i * n : (i + 1) * n] = weights
        covered[start : start + side] += 1
    return placed / covered


def _resized(
    rows: Float[np.ndarray, "H h"], columns: Float[np.ndarray, "W w"], sizes: Any
) -> tuple[np.ndarray, np.ndarray]:
    for height, width in sizes:
        rows = linear_weights(rows.shape[0], height) @ rows
        columns = linear_weights(columns.shape[0], width) @ columns
    return rows, columns


def cross_entropy_sums(
    logits: Float[Array, "B h w K"], labels: Integer[Array, "B H W"]
) -> Float[Array, "B"]:
    """Σ over the pixels of each image of -log softmax(logits, resized to the labels)[label].

    Args:
        logits: of a map of any size.
        labels: classes; pixels of any other label, such as 255, add nothing.

    Returns:
        Sums, in the dtype of the logits.
    """
    classes = jnp.arange(logits.shape[-1])

    def some_rows(
        scores: tuple[Float[Array, "B R W K"], ...], labels: Integer[Array, "B R W"]
    ) -> Float[Array, "B"]:
        (x,) = scores
        chosen = labels[..., None] == classes[None, None, None]
        losses = jax.nn.logsumexp(x, axis=-1) - jnp.where(chosen, x, 0).sum(-1)  # (B, R, W)
        return jnp.where(chosen.any(-1), losses, 0).sum((1, 2))

    height, width = labels.shape[1:]
    return _by_rows(some_rows, (enlarge(logits, (height, width)),), labels).sum(0)


def likeliest_classes(
    views: Sequence[Enlarged],
) -> tuple[Int[Array, "B H W"], Float[Array, "B H W"]]:
    """The class with the largest probability at each pixel, the lower one of equals; and that.

    Args:
        views: of the same pixels; the probabilities of several are averaged.
    """

    def some_rows(
        scores: tuple[Float[Array, "B R W K"], ...], _: None
    ) -> tuple[Int[Array, "B R W"], Float[Array, "B R W"]]:
        mean = sum(jax.nn.softmax(x, axis=-1) for x in scores) / len(scores)
        # Of logits, where there is one view: rounding makes large probabilities equal.
        best = jnp.argmax(scores[0] if len(scores) == 1 else mean, axis=-1)
        return best, mean.max(-1)

    blocks = _by_rows(some_rows, tuple(views), None)  # (n, B, R, W) each
    height = views[0].rows.shape[0]
    classes, probabilities = (jnp.concatenate(list(x), axis=1)[:, :height] for x in blocks)
    return classes, probabilities


def _by_rows(
    function: Callable[..., Any], views: tuple[Enlarged, ...], labels: Array | None
) -> Any:
    """`function(scores, labels)` of some rows after the other, its results on a new first axis.

    Rows that fill the last ones up are zeros, with labels of -1.
    """
    height, columns = views[0].rows.shape[0], views[0].columns.shape[0]
    row = columns * views[0].logits.shape[-1]
    count = -(-height * row // _NUMBERS_AT_ONCE)
    rows = -(-height // count)
    below = count * rows - height

    def cut(matrix: Float[np.ndarray, "H h"]) -> Float[np.ndarray, "n R h"]:
        return np.pad(matrix, ((0, below), (0, 0))).reshape(count, rows, -1)

    def one(block: tuple[Any, Any]) -> Any:
        parts, some_labels = block
        scores = tuple(_product(view, part) for view, part in zip(views, parts, strict=True))
        return function(scores, some_labels)

    parts = tuple(jnp.asarray(cut(view.rows), view.logits.dtype) for view in views)
    if labels is not None:
        labels = jnp.pad(labels.astype(jnp.int32), ((0, 0), (0, below), (0, 0)), constant_values=-1)
        labels = labels.reshape(labels.shape[0], count, rows, -1).swapaxes(0, 1)  # (n, B, R, W)
    if count == 1:
        result = one(jax.tree.map(lambda x: x[0], (parts, labels)))
        return jax.tree.map(lambda x: x[None], result)
    return jax.lax.map(jax.checkpoint(one), (parts, labels))


def _product(view: Enlarged, rows: Float[Array, "R h"]) -> Float[Array, "B R W K"]:
    """Logits of some rows of pixels."""
    columns = jnp.asarray(view.columns, view.logits.dtype)
    x = jnp.einsum("Rh,bhwk->bRwk", rows, view.logits, precision="highest")
    return jnp.einsum("Ww,bRwk->bRWk", columns, x, precision="highest")
