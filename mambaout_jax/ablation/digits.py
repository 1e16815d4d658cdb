# SPDX-License-Identifier: Apache-2.0
"""Scans of digits, scikit-learn's: as a map, as a sequence of pixels, many of them in a scene."""

import functools

import numpy as np
from jaxtyping import Float
from PIL import Image

from mambaout_jax.ablation.examples import UNSCORED, Examples, Sizes, TokenTask, unscored
from mambaout_jax.data.sets.digits import Digits

SCAN_SIDE = 8  # pixels
_HELD_OUT = 5  # every fifth scan of the training split chooses the learning rate
_CELL = 2 * SCAN_SIDE  # pixels of a scene that hold one scan
_INK = -0.5  # mean grey of a patch above which it belongs to a digit, in [-1, 1]


def digits(*, side: int) -> TokenTask:
    """Which digit is it? Pixels are tokens, and one answer is asked.

    Args:
        side: pixels that a scan is enlarged to.
    """

    def split(scans: np.ndarray, labels: np.ndarray) -> Examples:
        return Examples(_enlarged(scans, side)[..., None], labels)

    train, validation, test = (split(*scans) for scans in _scans())
    return TokenTask("digits", False, 0, 10, train, validation, test)


def sequential_digits(*, side: int) -> TokenTask:
    """Which digit is it? The pixels come row by row, and the last one is asked.

    Args:
        side: as in `digits`.
    """

    def split(scans: np.ndarray, labels: np.ndarray) -> Examples:
        pixels = _enlarged(scans, side).reshape(len(scans), 1, -1, 1)
        targets = unscored(len(scans), side**2)
        targets[:, -1] = labels
        return Examples(pixels, targets)

    train, validation, test = (split(*scans) for scans in _scans())
    return TokenTask("sequential_digits", True, 0, 10, train, validation, test)


def scenes(*, sizes: Sizes, side: int, patch: int = 2, seed: int = 0) -> TokenTask:
    """Which digit does a patch belong to? Asked of every patch with ink.

    Segmentation at a high resolution: a scene holds a scan of the split in each cell of 16 x 16
    pixels, anywhere in it.

    Args:
        sizes: scenes of each split.
        side: pixels of a side of a scene, a multiple of 16.
        patch: pixels of a side of a token.
        seed: seed of the data.
    """
    if side % _CELL or _CELL % patch:
        raise ValueError(
            f"side={side} must be a multiple of {_CELL} pixels, the room of a digit, and patch="
            f"{patch} a divisor of {_CELL}"
        )
    rngs = np.random.default_rng(seed).spawn(3)
    train, validation, test = (
        _draw_scenes(rng, count, *scans, side, patch)
        for rng, count, scans in zip(rngs, sizes, _scans(), strict=True)
    )
    return TokenTask("scenes", False, 0, 10, train, validation, test)


def _draw_scenes(
    rng: np.random.Generator,
    count: int,
    scans: np.ndarray,
    labels: np.ndarray,
    side: int,
    patch: int,
) -> Examples:
    canvas = np.full((count, side, side), -1, np.float32)
    owner = np.full((count, side, side), UNSCORED, np.int32)
    example, corner = np.arange(count)[:, None, None], np.arange(SCAN_SIDE)
    for top in range(0, side, _CELL):
        for left in range(0, side, _CELL):
            shown = rng.integers(len(scans), size=count)
            row, column = rng.integers(_CELL - SCAN_SIDE + 1, size=(2, count, 1, 1))
            window = (example, top + row + corner[:, None], left + column + corner)
            canvas[window] = scans[shown]
            owner[window] = labels[shown][:, None, None]
    patches = _patches(canvas, patch)  # (E, H, W, P)
    label = _patches(owner, patch).max(axis=-1)
    targets = np.where(patches.mean(axis=-1) > _INK, label, UNSCORED).astype(np.int32)
    return Examples(patches, targets.reshape(count, -1))


_Scans = tuple[np.ndarray, np.ndarray]  # (E, 8, 8) and (E,)


@functools.cache
def _scans() -> tuple[_Scans, _Scans, _Scans]:
    """Grey levels in [-1, 1] and labels: training, validation, test.

    The test split is what the set itself holds out.
    """

    def read(split: str) -> _Scans:
        source = Digits(split)
        pairs = [(np.asarray(source[i]["image"]), source[i]["label"]) for i in range(len(source))]
        pixels, labels = (np.array(column) for column in zip(*pairs, strict=True))
        levels = np.rint(pixels / 255 * 16) / 8 - 1
        return levels.astype(np.float32), labels.astype(np.int32)

    scans, labels = read("train")
    held_out = np.arange(len(scans)) % _HELD_OUT == 0
    return (
        (scans[~held_out], labels[~held_out]),
        (scans[held_out], labels[held_out]),
        read("validation"),
    )


def _enlarged(scans: Float[np.ndarray, "E 8 8"], side: int) -> Float[np.ndarray, "E H W"]:
    if side == SCAN_SIDE:
        return scans
    resized = [
        Image.fromarray(scan).resize((side, side), Image.Resampling.BILINEAR) for scan in scans
    ]
    return np.stack([np.asarray(image) for image in resized])


def _patches(images: np.ndarray, side: int) -> np.ndarray:
    """(E, H, W) to (E, H / side, W / side, side²)."""
    count, height, width = images.shape
    x = images.reshape(count, height // side, side, width // side, side)
    return x.swapaxes(2, 3).reshape(count, height // side, width // side, side**2)
