# SPDX-License-Identifier: Apache-2.0
"""Images, objects and labels on which dense models are compared: the same on both sides."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05  # of AdamW, on both sides
AUXILIARY_WEIGHT = 0.4  # of UperNet's second loss
CLASSES = {"detection": 80, "segmentation": 150}

# So many objects, all the rows of a batch, that the samples of the box and mask heads hold as many
# positive ones as they may: torchvision computes no more than there are, and here all rows are.
_OBJECTS = 100
_REGIONS = 16  # boxes of which the heads' outputs are compared


class Inputs(NamedTuple):
    """Attributes:
    dtype: of the computation.
    classes: without background.
    images: normalised.
    labels: of the objects, or of pixels.
    boxes: of the objects, in pixels; none where pixels are labelled.
    masks: of the objects, 0 or 1, ellipses inside of their boxes.
    regions: boxes of which outputs are compared.
    """

    dtype: str
    classes: int
    images: Float[np.ndarray, "B H W 3"]
    labels: Int[np.ndarray, "B M"] | Int[np.ndarray, "B H W"]
    boxes: Float[np.ndarray, "B M 4"]
    masks: UInt8[np.ndarray, "B M H W"]
    regions: Float[np.ndarray, "B R 4"]


def make_inputs(task: str, size: tuple[int, int], batch_size: int, dtype: str) -> Inputs:
    """Random inputs, always the same.

    Args:
        task: "detection" or "segmentation".
        size: (H, W) of the images.
        batch_size: images.
        dtype: of the computation.
    """
    rng = np.random.default_rng(0)
    classes = CLASSES[task]
    images = rng.standard_normal((batch_size, *size, 3), np.float32)
    if task == "segmentation":
        labels = rng.integers(classes, size=(batch_size, *size), dtype=np.int32)
        nothing = np.zeros((batch_size, 0, 4), np.float32)
        masks = np.zeros((batch_size, 0, *size), np.uint8)
        return Inputs(dtype, classes, images, labels, nothing, masks, nothing)
    labels = rng.integers(classes, size=(batch_size, _OBJECTS), dtype=np.int32)
    boxes, regions = (_boxes(rng, (batch_size, n), size) for n in (_OBJECTS, _REGIONS))
    masks = np.stack([_ellipses(some, size) for some in boxes])
    return Inputs(dtype, classes, images, labels, boxes, masks, regions)


def _boxes(
    rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "B N 4"]:
    """Boxes of a twentieth to half of an image's sides, inside of it."""
    whole = np.array(size[::-1], np.float32)
    sides = whole * rng.uniform(0.05, 0.5, (*shape, 2)).astype(np.float32)
    corners = (whole - sides) * rng.uniform(0, 1, (*shape, 2)).astype(np.float32)
    return np.concatenate([corners, corners + sides], axis=-1)


def _ellipses(boxes: Float[np.ndarray, "N 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "N H W"]:
    centres, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x, y = (np.arange(n) + 0.5 for n in size[::-1])
    across = ((x - centres[:, :1]) / radii[:, :1]) ** 2  # (N, W)
    down = ((y - centres[:, 1:]) / radii[:, 1:]) ** 2  # (N, H)
    return (down[:, :, None] + across[:, None, :] <= 1).astype(np.uint8)
