# SPDX-License-Identifier: Apache-2.0
"""Images with boxes and masks of objects, as mmdet 3.3 trains and tests Mask R-CNN on them.

Images are resized to a shorter and a longer side, without antialiasing, and stand in the upper left
corner of a canvas: a landscape or a portrait one, of sides that are multiples of 32. Outside of
`image_shape` a canvas is 0 of uint8, and becomes mmdet's padding, 0 after normalising, on the
device. Boxes are x1 y1 x2 y2 in pixels.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from mambaout_jax.config import Config
from mambaout_jax.data.sets.image_files import pixels_of
from mambaout_jax.data.views.resize import resize_image, resize_labels, scaled_size

STRIDE = 32  # of the coarsest map; sides of a canvas are multiples of it
CROP_SHORT_SIDES = (400, 500, 600)  # pixels, of which one is drawn for an image that is cropped
CROP_SIDES = (384, 600)  # pixels; each side of a crop is uniform between them

_LOG = logging.getLogger("mambaout_jax")


class TrainingView:
    """{image, boxes, labels, masks} → a canvas with at most `detection.max_instances` objects.

    The image is resized to the largest size of its proportions within (`data.image_size`,
    `detection.long_side`), then flipped with probability `augment.flip_probability`. With
    `detection.multi_scale` or `detection.crop_probability`, mmdet's recipe of 36 epochs, it is
    flipped first. Then, with the second one's probability, it is resized to a shorter side of 400,
    500 or 600 and cropped, each side uniform between 384 and 600 pixels or the whole of a shorter
    one; at last it is resized to a shorter side drawn from the first one.

    As in mmdet a box is scaled by the true ratio of each axis and clipped, and one that lies
    outside a crop is dropped with its object, while the others keep boxes that the crop has cut:
    they are not drawn anew around the masks. Images without any object are trained on.

    One thing differs from mmdet: a crop that is portrait in a landscape canvas, or the other way
    round, changes its height for its width, since shapes are static here.

    Args:
        config: reads `data.image_size`, `detection` and `augment.flip_probability`.

    Raises:
        ValueError: crops are asked for, and `detection.long_side` is below 600 pixels.
    """

    def __init__(self, config: Config):
        longest = max(CROP_SHORT_SIDES)
        if config.detection.crop_probability and config.detection.long_side < longest:
            raise ValueError(
                f"detection.crop_probability={config.detection.crop_probability} crops images of "
                f"up to {longest} pixels, and detection.long_side={config.detection.long_side}; "
                f"set --config.detection.crop_probability=0, or long_side to {longest} or more"
            )
        # Plain values: a Config costs microseconds per access, here once per example.
        settings = config.detection
        self._shorts = tuple(settings.multi_scale) or (config.data.image_size,)
        self._long = settings.long_side
        self._canvases = Canvases.of(config, train=True)
        self._crop_probability = settings.crop_probability
        self._flips_first = bool(settings.multi_scale or settings.crop_probability)
        self._flip_probability = config.augment.flip_probability
        self._max_instances = settings.max_instances
        self._told = {}

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        """`image` uint8 (CH, CW, C), `image_shape` int32 (2,), its height and width in the canvas,
        `boxes` float32 (M, 4), `labels` int32 (M,), -1 where there is no object, and `masks`, uint8
        (M, CH, CW / 8): bitmaps packed along the width, the first pixel in the highest bit.

        `left_out`, int32, counts objects beyond the first M = max_instances; the first image that
        has some is logged.
        """
        pixels = pixels_of(example["image"])
        image = _Image(pixels, *(example[name] for name in ("boxes", "labels", "masks")))
        canvas = self._canvases.shape(pixels.shape[:2])
        flips = rng.random() < self._flip_probability
        if flips and self._flips_first:
            image = _flipped(image)
        if self._crop_probability and rng.random() < self._crop_probability:
            image = self._cropped(image, canvas, rng)
        short = self._shorts[rng.integers(len(self._shorts))]
        image = _resized(image, self._size(image, short))
        if flips and not self._flips_first:
            image = _flipped(image)
        return self._padded(image, canvas)

    def _size(self, image: "_Image", short: int) -> tuple[int, int]:
        return scaled_size(image.pixels.shape[:2], (short, self._long))

    def _cropped(
        self, image: "_Image", canvas: tuple[int, int], rng: np.random.Generator
    ) -> "_Image":
        short = CROP_SHORT_SIDES[rng.integers(len(CROP_SHORT_SIDES))]
        size = self._size(image, short)
        low, high = CROP_SIDES
        sides = [int(rng.integers(min(n, low), min(n, high), endpoint=True)) for n in size]
        if canvas[0] != canvas[1] and (sides[0] > sides[1]) != (canvas[0] > canvas[1]):
            sides.reverse()  # which fits: the image lies as the canvas does
        top, left = (
            int(rng.integers(n - side, endpoint=True)) for n, side in zip(size, sides, strict=True)
        )
        return _resized(image, size, (top, left, top + sides[0], left + sides[1]))

    def _padded(self, image: "_Image", canvas: tuple[int, int]) -> dict[str, Any]:
        kept = min(len(image.labels), self._max_instances)
        left_out = len(image.labels) - kept
        if left_out:
            ticket = object()
            # setdefault is atomic: of several threads only one logs.
            if self._told.setdefault("left out", ticket) is ticket:
                _LOG.warning(
                    "an image has %d objects: those beyond the first detection.max_instances=%d "
                    "are not trained on, in this and other images; raise it to keep them",
                    len(image.labels), kept,
                )  # fmt: skip
        height, width = image.pixels.shape[:2]
        boxes = np.zeros((self._max_instances, 4), np.float32)
        boxes[:kept] = image.boxes[:kept]
        labels = np.full(self._max_instances, -1, np.int32)
        labels[:kept] = image.labels[:kept]
        masks = np.zeros((self._max_instances, canvas[0], canvas[1] // 8), np.uint8)
        # Of flipped masks a copy is made first: in the order of memory packing is quicker by more.
        packed = np.packbits(np.ascontiguousarray(image.masks[:kept]), axis=-1)
        masks[:kept, :height, : packed.shape[-1]] = packed
        return {
            "image": _on_canvas(image.pixels, canvas),
            "image_shape": np.array([height, width], np.int32),
            "boxes": boxes,
            "labels": labels,
            "masks": masks,
            "left_out": np.int32(left_out),
        }


class EvaluationView:
    """{image, image_id} → the whole image, resized, on a canvas.

    Args:
        image_size, long_side: pixels; the sides of the largest resized image.
    """

    def __init__(self, image_size: int, long_side: int):
        self._bounds = (image_size, long_side)
        self._canvases = Canvases(image_size, long_side)

    @classmethod
    def of(cls, config: Config) -> "EvaluationView":
        """By `data.image_size` and `detection.long_side`."""
        return cls(config.data.image_size, config.detection.long_side)

    def __call__(self, example: dict) -> dict:
        """`image` uint8 (CH, CW, C), `image_shape` and `original`, int32 (2,), height and width of
        the resized image and of the one before, `scale` float32 (2,), the first over the second,
        and `image_id`, int32.
        """
        pixels = pixels_of(example["image"])
        original = pixels.shape[:2]
        size = scaled_size(original, self._bounds)
        resized = resize_image(pixels, size)
        return {
            "image": _on_canvas(resized, self._canvases.shape(original)),
            "image_shape": np.array(size, np.int32),
            "scale": (np.array(size) / original).astype(np.float32),
            "image_id": np.int32(example["image_id"]),
            "original": np.array(original, np.int32),
        }


class Canvases(NamedTuple):
    """The two shapes that all images get, or the one if they are square.

    Attributes:
        short, long: sides of the largest resized image, in pixels.
    """

    short: int
    long: int

    @classmethod
    def of(cls, config: Config, train: bool) -> "Canvases":
        """By `data.image_size`, `detection.long_side` and, in training, `detection.multi_scale`."""
        shorts = tuple(config.detection.multi_scale) if train else ()
        return cls(max(shorts or (config.data.image_size,)), config.detection.long_side)

    def shape(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the canvas for an image of a height and a width."""
        short, long = sorted(-(-side // STRIDE) * STRIDE for side in self)
        return (long, short) if image_size[0] > image_size[1] else (short, long)

    def groups(self, image_sizes: Int[np.ndarray, "N 2"]) -> list[int] | None:
        """0 for landscape and square images, 1 for portrait ones; None: one canvas serves all.

        Args:
            image_sizes: height and width of each original image.
        """
        if self.shape((1, 2)) == self.shape((2, 1)):
            return None
        return (image_sizes[:, 0] > image_sizes[:, 1]).astype(int).tolist()


class _Image(NamedTuple):
    pixels: UInt8[np.ndarray, "H W C"]
    boxes: Float32[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, "n"]
    masks: Bool[np.ndarray, "n H W"]


def _resized(
    image: _Image, size: tuple[int, int], window: tuple[int, int, int, int] | None = None
) -> _Image:
    """Resizes to a height and width, of which only a window (top, left, bottom, right) is kept."""
    height, width = image.pixels.shape[:2]
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    boxes, labels, masks = _clipped(image.boxes * scale, *size), image.labels, image.masks
    if window is not None:
        top, left, bottom, right = window
        boxes = _clipped(boxes - np.array([left, top] * 2, np.float32), bottom - top, right - left)
        inside = (boxes[:, :2] < (right - left, bottom - top)).all(1) & (boxes[:, 2:] > 0).all(1)
        boxes, labels, masks = boxes[inside], labels[inside], masks[inside]
    return _Image(
        resize_image(image.pixels, size, window), boxes, labels, resize_labels(masks, size, window)
    )


def _flipped(image: _Image) -> _Image:
    width = np.float32(image.pixels.shape[1])
    boxes = image.boxes.copy()
    boxes[:, [0, 2]] = width - image.boxes[:, [2, 0]]
    return _Image(image.pixels[:, ::-1], boxes, image.labels, image.masks[:, :, ::-1])


def _clipped(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    return boxes.clip(0, np.array([width, height] * 2, np.float32))


def _on_canvas(
    pixels: UInt8[np.ndarray, "H W C"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "CH CW C"]:
    canvas = np.zeros((*shape, pixels.shape[2]), np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas
