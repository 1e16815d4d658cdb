# SPDX-License-Identifier: Apache-2.0
"""Pictures of images whose pixels have classes, as PNG files: colours over the image."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from pycocotools import mask as rle

from mambaout_jax.analysis.figures import draw_image_grid
from mambaout_jax.metrics.miou import IGNORED

_SIDE = 240  # pixels, longer side of one image in a grid
_NAMED = 3  # classes in a title
_GOLDEN = 0.618033988749895  # of a turn between the hues of two classes: none is met twice
_OPACITY = 0.6


def draw_labelled_images(
    images: UInt8[np.ndarray, "B H W C"],
    labels: Integer[np.ndarray, "B H W"],
    class_names: Sequence[str],
    path: str | Path,
) -> None:
    """Draws images, each beside its labels, under the names of its largest classes.

    Args:
        images: greyscale or RGB.
        labels: 255 where a pixel does not count, which is drawn dark grey.
        class_names: in the order of the labels.
        path: the PNG file to write.
    """
    pairs = [
        _side_by_side(_rgb(image), painted(image, label, len(class_names)))
        for image, label in zip(images, labels, strict=True)
    ]
    titles = [", ".join(_largest(label, class_names)) or "nothing labelled" for label in labels]
    draw_image_grid(np.stack(pairs), titles, path, side=2 * _SIDE)


def draw_worst_images(
    examples: Sequence[Mapping[str, Any]],
    guesses: UInt8[np.ndarray, "B h w"],
    ious: Float[np.ndarray, "B"],
    class_names: Sequence[str],
    path: str | Path,
) -> None:
    """Draws images, each with its labels and with what was predicted, under its mean IoU.

    Args:
        examples: with `image` and `labels`.
        guesses: predicted classes, squashed to one size.
        ious: in [0, 1].
        class_names: in the order of the labels.
        path: the PNG file to write.
    """
    triples, titles = [], []
    for example, guess, iou in zip(examples, guesses, ious, strict=True):
        image, labels = _rgb(np.asarray(example["image"])), np.asarray(example["labels"])
        size = labels.shape[1], labels.shape[0]
        said = np.asarray(Image.fromarray(guess).resize(size, Image.Resampling.NEAREST))
        parts = (image, *(painted(image, x, len(class_names)) for x in (labels, said)))
        triples.append(_side_by_side(*parts))
        names = (", ".join(_largest(x, class_names)) for x in (labels, said))
        titles.append("mIoU {:.0f} %\nis {}\nsaid {}".format(100 * iou, *names))
    draw_image_grid(np.stack(triples), titles, path, side=3 * _SIDE)


def draw_overlays(predictions: Sequence[Any], class_names: Sequence[str], path: str | Path) -> None:
    """Draws images beside the classes that were found in them, under their names.

    Args:
        predictions: `tasks.task.Prediction`s whose findings have `name`, `share` and `mask`.
        class_names: in the order of the model's outputs.
        path: the PNG file to write.
    """
    pairs, titles = [], []
    for prediction in predictions:
        image = prediction.image
        classes = np.full(image.shape[:2], IGNORED)
        for finding in prediction.findings:
            classes[rle.decode(finding["mask"]) > 0] = class_names.index(finding["name"])
        pairs.append(_side_by_side(_rgb(image), painted(image, classes, len(class_names))))
        said = [f"{f['name']} {100 * f['share']:.0f} %" for f in prediction.findings[:_NAMED]]
        titles.append(f"{prediction.path.name}\n{', '.join(said)}")
    draw_image_grid(np.stack(pairs), titles, path, side=2 * _SIDE)


def palette(num_classes: int) -> UInt8[np.ndarray, "K 3"]:
    """A colour for each class, the same whatever their number; neighbours differ much."""
    colors = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, (0.9, 0.55)[i // 2 % 2], (1.0, 0.75)[i // 4 % 2])
        for i in range(num_classes)
    ]
    return np.round(255 * np.array(colors)).astype(np.uint8)


def painted(
    image: UInt8[np.ndarray, "H W C"], classes: Integer[np.ndarray, "H W"], num_classes: int
) -> UInt8[np.ndarray, "H W 3"]:
    """An image in grey under the colours of its classes.

    Args:
        image: greyscale or RGB.
        classes: what is no class, such as 255, is darker, without a colour.
        num_classes: of the palette.
    """
    known = (classes >= 0) & (classes < num_classes)
    colors = palette(num_classes)[np.where(known, classes, 0)]
    colors = np.where(known[..., None], colors, 0)
    grey = image.mean(axis=-1, keepdims=True)
    return np.round(_OPACITY * colors + (1 - _OPACITY) * grey).astype(np.uint8)


def _largest(classes: Integer[np.ndarray, "H W"], class_names: Sequence[str]) -> list[str]:
    """Names of the classes with most pixels."""
    counts = np.bincount(classes.reshape(-1), minlength=len(class_names))[: len(class_names)]
    order = np.argsort(-counts, kind="stable")[:_NAMED]
    return [str(class_names[i]) for i in order if counts[i]]


def _rgb(image: UInt8[np.ndarray, "H W *C"]) -> UInt8[np.ndarray, "H W 3"]:
    image = image[..., None] if image.ndim == 2 else image
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _side_by_side(*images: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S T 3"]:
    """Each in the middle of a white square, so that images of all proportions make a grid."""
    squares = []
    for image in images:
        height, width = image.shape[:2]
        scale = _SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, method))
        square = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
        square[top : top + size[1], left : left + size[0]] = resized
        squares.append(square)
    return np.concatenate(squares, axis=1)
