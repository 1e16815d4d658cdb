# SPDX-License-Identifier: Apache-2.0
"""Small tasks, short and long, fully visible and autoregressive (paper, Section 3).

                    short                long
    understanding   digits               matching, other_scan
    autoregressive  next_pixel           copying, recall

An understanding task shows all tokens at once, as a map. An autoregressive task asks for the next
token of a sequence, so that a mixer which looks ahead would read the answer.

The digits are scikit-learn's scans, the rest is generated from a seed. Nothing is downloaded.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mambaout_jax.data.sets.digits import Digits

UNSCORED = -1  # target of a token of which nothing is asked
LEVELS = 17  # grey levels of a scan
SCAN_SIDE = 8  # pixels


class Examples(NamedTuple):
    """Inputs and what is asked of them.

    Attributes:
        inputs: ids of tokens (E, H, W), or features (E, H, W, I).
        targets: one class per example (E,) or per token in raster order (E, L), or UNSCORED.
    """

    inputs: Int[np.ndarray, "E H W"] | Float[np.ndarray, "E H W I"]
    targets: Int[np.ndarray, "E"] | Int[np.ndarray, "E L"]


@dataclasses.dataclass(frozen=True)
class TokenTask:
    """A task and its data.

    Attributes:
        name: a key of `TOKEN_TASKS`.
        autoregressive: whether each token may see only those before it.
        vocabulary: how many ids there are; 0 where the inputs are features.
        num_classes: how many answers there are.
        train, test: disjoint, or drawn independently.
    """

    name: str
    autoregressive: bool
    vocabulary: int
    num_classes: int
    train: Examples
    test: Examples

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the tokens; a sequence is one row."""
        height, width = self.train.inputs.shape[1:3]
        return height, width

    @property
    def length(self) -> int:
        """L, in tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> int:
        """I, channels of a token as the model reads it."""
        return self.vocabulary or self.train.inputs.shape[-1]

    @property
    def dense(self) -> bool:
        """Whether tokens have targets, instead of examples."""
        return self.train.targets.ndim == 2

    @property
    def chance(self) -> float:
        """Accuracy on the test set of always giving the training set's most frequent answer."""
        train, test = (
            split.targets[split.targets != UNSCORED] for split in (self.train, self.test)
        )
        return float(np.mean(test == np.bincount(train).argmax()))


def digits() -> TokenTask:
    """Which digit is it? 64 tokens, the pixels of a scan."""

    def split(name: str) -> Examples:
        levels, labels = _scans(name)
        return Examples(_normalised(levels)[..., None], labels)

    return TokenTask("digits", False, 0, 10, split("train"), split("validation"))


def next_pixel() -> TokenTask:
    """Which grey level has the next pixel of a scan, row by row? Every one of 64 is asked."""
    start = LEVELS  # the token before the first pixel

    def split(name: str) -> Examples:
        pixels = _scans(name)[0].reshape(-1, SCAN_SIDE**2)
        inputs = np.pad(pixels[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        return Examples(inputs[:, None], pixels)

    return TokenTask("next_pixel", True, LEVELS + 1, LEVELS, split("train"), split("validation"))


def copying(
    *, train: int, test: int, length: int, items: int, symbols: int, seed: int = 0
) -> TokenTask:
    """Selective copying (Mamba, arXiv 2312.00752, Section 3.1): repeat the symbols, skip the noise.

    Symbols are strewn over noise; after a separator the sequence goes on with them, in order. The
    answers given so far are seen, as in any next-token prediction.

    Args:
        train, test: examples.
        length: L.
        items: symbols to repeat.
        symbols: different ones.
        seed: seed of the data.
    """
    noise, separator = 0, symbols + 1

    def draw(rng: np.random.Generator, count: int, _: str) -> Examples:
        answers = rng.integers(symbols, size=(count, items))
        context = np.full((count, length - items), noise)
        _put(context, np.sort(_choose(rng, count, length - items, items)), answers + 1)
        inputs = np.concatenate(
            (context, np.full((count, 1), separator), answers[:, :-1] + 1), axis=1
        )
        targets = np.full((count, length), UNSCORED)
        targets[:, length - items :] = answers
        return Examples(inputs[:, None].astype(np.int32), targets.astype(np.int32))

    return TokenTask("copying", True, symbols + 2, symbols, *_splits(draw, train, test, seed))


def recall(
    *, train: int, test: int, length: int, pairs: int, keys: int, values: int, seed: int = 0
) -> TokenTask:
    """Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927, Section 3).

    Pairs of a key and a value, then noise in which each pair comes once more, anywhere: at its key
    the value is asked. Who knows the values, but not which key is whose, is right about once in
    `pairs` answers.

    Args:
        train, test: examples.
        length: L.
        pairs: how many in each example, of different keys.
        keys, values: different ones in the vocabulary.
        seed: seed of the data.
    """
    noise, room = 0, length + 1 - 2 * pairs  # tokens after the pairs

    def draw(rng: np.random.Generator, count: int, _: str) -> Examples:
        key = _choose(rng, count, keys, pairs)
        value = rng.integers(values, size=(count, pairs))
        sequence = np.full((count, length + 1), noise)
        targets = np.full((count, length + 1), UNSCORED)
        again = 2 * pairs + 2 * _choose(rng, count, room // 2, pairs)
        for places in (np.broadcast_to(2 * np.arange(pairs), again.shape), again):
            _put(sequence, places, 1 + key)
            _put(sequence, places + 1, 1 + keys + value)
        _put(targets, again, value)
        return Examples(sequence[:, None, :-1].astype(np.int32), targets[:, :-1].astype(np.int32))

    return TokenTask("recall", True, 1 + keys + values, values, *_splits(draw, train, test, seed))


def matching(
    *, train: int, test: int, side: int, patch: int, classes: int, seed: int = 0
) -> TokenTask:
    """Do two scans, far apart on an empty canvas, show the same digit? Half of them do.

    Asked once per image. The scans lie as `_far_apart` says; test scans are none of those trained
    on.

    Args:
        train, test: examples.
        side: pixels of the canvas, a multiple of `patch`, at least four scans.
        patch: pixels of a side of a token.
        classes: the digits 0 ... classes - 1 are used.
        seed: seed of the data.
    """

    def draw(rng: np.random.Generator, count: int, split: str) -> Examples:
        same = rng.permutation(np.arange(count) % 2)
        left = rng.integers(classes, size=count)
        right = np.where(same, left, (left + rng.integers(1, classes, size=count)) % classes)
        inputs, _ = _far_apart(rng, split, (left, right), side, patch)
        return Examples(inputs, same.astype(np.int32))

    return TokenTask("matching", False, 0, 2, *_splits(draw, train, test, seed))


def other_scan(
    *, train: int, test: int, side: int, patch: int, classes: int, seed: int = 0
) -> TokenTask:
    """Which digit does the other scan show? Asked of each patch that one of two scans touches.

    The images are of the kind of `matching`, the arguments too; the answer lies far away from
    every token that is asked, and, as in segmentation, no pooling brings it near.
    """

    def draw(rng: np.random.Generator, count: int, split: str) -> Examples:
        left, right = rng.integers(classes, size=(2, count))
        inputs, touched = _far_apart(rng, split, (left, right), side, patch)
        targets = np.full(touched[0].shape, UNSCORED)
        for patches, other in zip(touched, (right, left), strict=True):
            targets = np.where(patches, other[:, None], targets)
        return Examples(inputs, targets.astype(np.int32))

    return TokenTask("other_scan", False, 0, classes, *_splits(draw, train, test, seed))


TOKEN_TASKS: dict[str, Callable[..., TokenTask]] = {
    "digits": digits,
    "next_pixel": next_pixel,
    "copying": copying,
    "recall": recall,
    "matching": matching,
    "other_scan": other_scan,
}


def _scans(split: str) -> tuple[Int[np.ndarray, "E 8 8"], Int[np.ndarray, "E"]]:
    """Grey levels 0 ... 16 and labels."""
    source = Digits(split)
    pairs = [(np.asarray(source[i]["image"]), source[i]["label"]) for i in range(len(source))]
    pixels, labels = (np.array(column) for column in zip(*pairs, strict=True))
    return np.rint(pixels / 255 * (LEVELS - 1)).astype(np.int32), labels.astype(np.int32)


def _far_apart(
    rng: np.random.Generator,
    split: str,
    digits: tuple[np.ndarray, np.ndarray],
    side: int,
    patch: int,
) -> tuple[Float[np.ndarray, "E H W I"], Bool[np.ndarray, "2 E L"]]:
    """Canvases with a scan of each digit, in the left and in the right quarter, at any height.

    Args:
        digits: to be shown on the left and on the right of each canvas.

    Returns:
        The patches, and which of them each scan touches.
    """
    if side < 4 * SCAN_SIDE or side % patch:
        raise ValueError(
            f"side={side} must be at least {4 * SCAN_SIDE} pixels and a multiple of patch={patch}"
        )
    levels, labels = _scans(split)
    by_label, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    first = np.cumsum(counts) - counts  # place of each digit's scans in `by_label`
    count = len(digits[0])
    canvas = np.zeros((count, side, side), np.float32)
    touched = []
    for shown, corner in zip(digits, (0, 3 * side // 4), strict=True):
        scans = by_label[first[shown] + (rng.random(count) * counts[shown]).astype(int)]
        rows = rng.integers(side - SCAN_SIDE + 1, size=count)
        columns = corner + rng.integers(side // 4 - SCAN_SIDE + 1, size=count)
        window = (
            np.arange(count)[:, None, None],
            rows[:, None, None] + np.arange(SCAN_SIDE)[None, :, None],
            columns[:, None, None] + np.arange(SCAN_SIDE)[None, None, :],
        )
        canvas[window] = levels[scans]
        covered = np.zeros(canvas.shape, bool)
        covered[window] = True
        touched.append(_patches(covered, patch).any(axis=-1).reshape(count, -1))  # (E, L)
    return _patches(_normalised(canvas), patch), np.stack(touched)


def _normalised(levels: np.ndarray) -> Float[np.ndarray, "E H W"]:
    """From 0 ... 16 to -1 ... 1."""
    return (levels * (2 / (LEVELS - 1)) - 1).astype(np.float32)


def _patches(images: np.ndarray, side: int) -> np.ndarray:
    """(E, H, W) to (E, H / side, W / side, side²)."""
    count, height, width = images.shape
    x = images.reshape(count, height // side, side, width // side, side)
    return x.swapaxes(2, 3).reshape(count, height // side, width // side, side**2)


def _choose(
    rng: np.random.Generator, count: int, among: int, number: int
) -> Int[np.ndarray, "E number"]:
    """`number` different ones of 0 ... among - 1, for each example."""
    if number > among:
        raise ValueError(f"{number} different ones cannot be chosen among {among}")
    return rng.permuted(np.tile(np.arange(among), (count, 1)), axis=1)[:, :number]


def _put(rows: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    np.put_along_axis(rows, places, values, axis=1)


def _splits(
    draw: Callable[[np.random.Generator, int, str], Examples], train: int, test: int, seed: int
) -> tuple[Examples, Examples]:
    """Independent draws; `draw` is also told which split of the scans to take."""
    rngs = np.random.default_rng(seed).spawn(2)
    return draw(rngs[0], train, "train"), draw(rngs[1], test, "validation")
