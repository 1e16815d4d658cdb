# SPDX-License-Identifier: Apache-2.0
"""Images with a label for each pixel, as mmseg 1.2 trains and tests on them.

Training: resize by a random factor, crop so that no class fills the crop, flip, change colours, pad
(`configs/_base_/datasets/ade20k.py`). Evaluation: the whole image, resized, against its labels in
the original size. Labels are uint8, and 255 does not count.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from mambaout_jax.config import Config
from mambaout_jax.data.sets.image_files import Decoded, pixels_of
from mambaout_jax.data.views import photometric
from mambaout_jax.data.views.resize import resize_image, resize_labels, scaled_size

IGNORED = 255  # label of pixels that do not count
_TRIES = 10  # crops that are drawn again where one class fills too much

_Labels = UInt8[np.ndarray, "H W"]


class TrainingView:
    """{image, labels} → a square of `data.image_size` pixels, with labels.

    - Both sides of the bounds (long_side, image_size) are multiplied by one factor, uniform in
      `segmentation.scale`, and cut to whole pixels; the image is resized to fill them, keeping
      its proportions: bilinear without antialiasing, labels by the nearest pixel.
    - A crop of image_size is drawn, uniform among those inside. It is drawn again, up to ten times,
      unless two classes or more are in it and the share of the largest in its labelled pixels is
      below `segmentation.max_class_share`; with 1 any crop will do.
    - Flipped with probability `augment.flip_probability`; `photometric.distort`.
    - Padded at the right and bottom: labels with 255, the image with 0 of uint8, which is not yet
      mmseg's 0 after normalising: `image_shape` tells what is the image.

    Args:
        config: reads `data.image_size`, `data.channels`, `segmentation` and
            `augment.flip_probability`.

    Raises:
        ValueError: photometric changes are asked for greyscale images.
    """

    def __init__(self, config: Config):
        # Plain values: a Config costs microseconds per access, here once per example.
        self._size, self._long = config.data.image_size, config.segmentation.long_side
        self._scale = tuple(config.segmentation.scale)
        self._max_share = config.segmentation.max_class_share
        self._photometric = config.segmentation.photometric
        self._flip = config.augment.flip_probability
        if self._photometric and config.data.channels != 3:
            raise ValueError(
                f"segmentation.photometric=True changes colours, and data.channels="
                f"{config.data.channels}; set --config.segmentation.photometric=False"
            )

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        """Image and uint8 labels of one size → `image` uint8 (S, S, C), `labels` uint8 (S, S) and
        `image_shape`, int32 (2,), height and width of the part that is not padding.

        Raises:
            ValueError: image and labels differ in size.
        """
        pixels, labels = pixels_of(example["image"]), example["labels"]
        _check_sizes(pixels, labels)
        factor = rng.uniform(*self._scale)
        bounds = max(1, int(self._long * factor)), max(1, int(self._size * factor))
        size = scaled_size(labels.shape, bounds)
        labels = resize_labels(labels, size)
        window = top, left, bottom, right = self._crop(labels, rng)
        labels = labels[top:bottom, left:right]
        pixels = resize_image(pixels, size, window)  # of the crop only
        if rng.random() < self._flip:
            pixels, labels = np.flip(pixels, 1), np.flip(labels, 1)
        if self._photometric:
            pixels = photometric.distort(pixels, rng)
        height, width = labels.shape
        below = ((0, self._size - height), (0, self._size - width))
        return {
            "image": np.pad(pixels, (*below, (0, 0))),
            "labels": np.pad(labels, below, constant_values=IGNORED),
            "image_shape": np.array([height, width], np.int32),
        }

    def _crop(self, labels: _Labels, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, bottom, right; the whole of a side that is shorter than the crop."""
        height, width = (min(self._size, side) for side in labels.shape)
        tries = _TRIES if self._max_share < 1 else 0
        while True:
            top = int(rng.integers(labels.shape[0] - height + 1))
            left = int(rng.integers(labels.shape[1] - width + 1))
            crop = labels[top : top + height, left : left + width]
            if not tries or is_mixed(crop, self._max_share):  # the last one is taken unseen
                return top, left, top + height, left + width
            tries -= 1


class EvaluationView:
    """{image, labels} → the whole image, resized, and its labels in their own size.

    The image is resized to fill (long_side, image_size), keeping its proportions, without padding:
    arrays of one batch have one shape where `groups` says so.
    """

    def __init__(self, image_size: int, long_side: int):
        self._bounds = (long_side, image_size)

    @classmethod
    def of(cls, config: Config) -> "EvaluationView":
        """By `data.image_size` and `segmentation.long_side`."""
        return cls(config.data.image_size, config.segmentation.long_side)

    def __call__(self, example: dict) -> dict:
        """`image` uint8 (h, w, C) and `labels` uint8 (H, W).

        Raises:
            ValueError: image and labels differ in size.
        """
        _check_sizes(pixels_of(example["image"]), example["labels"])
        return {"image": self.pixels(example["image"]), "labels": example["labels"]}

    def pixels(self, image: Decoded) -> UInt8[np.ndarray, "h w C"]:
        """What a model sees of an image."""
        pixels = pixels_of(image)
        return resize_image(pixels, scaled_size(pixels.shape[:2], self._bounds))


def groups(image_sizes: Int[np.ndarray, "N 2"]) -> Sequence[int]:
    """For each example a number; those that share one have the same shapes in an evaluation.

    That is the same original size, from which the resized one follows.

    Args:
        image_sizes: height and width of each original image.
    """
    return np.unique(image_sizes, axis=0, return_inverse=True)[1].reshape(-1).tolist()


def is_mixed(labels: _Labels, max_share: float) -> bool:
    """Whether two classes or more are there, and none has `max_share` of the labelled pixels."""
    counts = np.bincount(labels.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_share)


def _check_sizes(pixels: UInt8[np.ndarray, "h w C"], labels: _Labels) -> None:
    if pixels.shape[:2] != labels.shape:
        raise ValueError(
            f"an image of {pixels.shape[:2]} has labels of {labels.shape} (height, width); both "
            "must have one size"
        )
