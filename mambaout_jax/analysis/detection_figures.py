# SPDX-License-Identifier: Apache-2.0
"""Pictures of objects in images, and of how well they are found, as PNG and CSV files."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from mambaout_jax.analysis.figures import COLORS, INK, draw_image_grid, new_figure, save_figure

PICTURE_SIDE = 320  # pixels, longer side of a picture of objects

_OPACITY = 0.45  # of a mask
_TEXT = 11  # pixels
_SHOWN_OVERLAPS = (0, 2, 4, 6, 8)  # 0.5, 0.6, … of the ten
_MOST_BARS = 40  # classes in one picture: those of the lowest precision


def picture_objects(
    image: UInt8[np.ndarray, "H W C"],
    boxes: Num[np.ndarray, "n 4"],
    masks: Bool[np.ndarray, "n H W"],
    labels: Int[np.ndarray, "n"],
    texts: Sequence[str],
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its objects: masks in colours of their classes, boxes, and a text at each.

    Args:
        boxes: x1 y1 x2 y2 in pixels of the image.

    Returns:
        Enlarged or reduced to a longer side of `PICTURE_SIDE` pixels.
    """
    scale = PICTURE_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    channels = image[..., 0] if image.shape[-1] == 1 else image
    pixels = np.asarray(Image.fromarray(channels).convert("RGB").resize(size), np.float32)
    colors = [np.frombuffer(bytes.fromhex(color[1:]), np.uint8) for color in COLORS]
    for mask, label in zip(masks, labels, strict=True):
        inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        blend = (1 - _OPACITY) * pixels + _OPACITY * colors[label % len(colors)]
        pixels = np.where(inside[..., None], blend, pixels)
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(_TEXT)
    for box, label, text in zip(boxes, labels, texts, strict=True):
        color, corners = COLORS[label % len(COLORS)], [float(x) * scale for x in box]
        pen.rectangle(corners, outline=color)
        if text:
            # Below the upper edge where there is no room above it.
            corner = corners[0] + 1, max(corners[1] - _TEXT - 2, 0)
            pen.rectangle(pen.textbbox(corner, text, font), fill=color)
            pen.text(corner, text, "white", font)
    return np.asarray(drawn)


def draw_pictures(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], titles: Sequence[str], path: Path | str
) -> None:
    """Draws pictures of objects in rows, each under its title.

    Args:
        pictures: of different sizes.
        path: the PNG file to write.

    Raises:
        ValueError: as `draw_image_grid`.
    """
    tall, wide = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    canvases = np.full((len(pictures), tall, wide, 3), 255, np.uint8)
    for canvas, picture in zip(canvases, pictures, strict=True):
        height, width = picture.shape[:2]
        canvas[:height, (wide - width) // 2 :][:, :width] = picture
    draw_image_grid(canvases, titles, path, side=PICTURE_SIDE)


def draw_precision(precisions: dict[str, Float[np.ndarray, "10 101 _"]], path: Path | str) -> None:
    """Draws precision against recall, one panel for each kind of overlap.

    Args:
        precisions: by a panel's title; means over the classes that have objects are drawn, a curve
            for the overlaps 0.5, 0.6, … 0.9.
        path: the PNG file to write.
    """
    figure = new_figure(460 * len(precisions), 400, layout="constrained")
    for index, (title, precision) in enumerate(precisions.items(), start=1):
        axes = figure.add_subplot(1, len(precisions), index)
        present = (precision >= 0).all(axis=(0, 1))
        for at, color in zip(_SHOWN_OVERLAPS, COLORS, strict=False):
            curve = precision[at][:, present].mean(axis=1) if present.any() else np.zeros(101)
            label = f"IoU {0.5 + 0.05 * at:.1f}"
            axes.plot(np.linspace(0, 1, 101), curve, color=color, linewidth=1.5, label=label)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("recall", fontsize=8, color=INK)
        axes.set_ylabel("precision", fontsize=8, color=INK)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelsize=8, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, path)


def draw_class_precision(
    names: Sequence[str], precisions: dict[str, Float[np.ndarray, "K"]], path: Path | str
) -> None:
    """Draws the average precision of each class as bars, the lowest at the top.

    Args:
        precisions: by kind; in [0, 1], NaN for a class without objects, which is left out.
        path: the PNG file to write.
    """
    first = next(iter(precisions.values()))
    order = [i for i in np.argsort(first, kind="stable") if not np.isnan(first[i])][:_MOST_BARS]
    figure = new_figure(560, 90 + 22 * max(len(order), 1), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(precisions)
    for k, ((kind, values), color) in enumerate(zip(precisions.items(), COLORS, strict=False)):
        places = np.arange(len(order)) + (k - (len(precisions) - 1) / 2) * height
        axes.barh(places, 100 * values[order], height, color=color, label=kind)
    ticks: Any = range(len(order))
    axes.set_yticks(ticks, [names[i] for i in order], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("average precision (%)", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, path)


def write_class_precision(
    names: Sequence[str],
    objects: Int[np.ndarray, "K"],
    precisions: dict[str, Float[np.ndarray, "K"]],
    path: Path | str,
) -> None:
    """Writes a row for each class: its objects and its average precisions, in percent.

    Args:
        objects: of the ground truth, without crowds.
        precisions: by the column's name; in [0, 1], NaN where there is none: an empty cell.
        path: the CSV file to write.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "objects", *precisions])
        for i, name in enumerate(names):
            cells = [values[i] for values in precisions.values()]
            texts = ["" if math.isnan(value) else f"{100 * value:.2f}" for value in cells]
            writer.writerow([name, int(objects[i]), *texts])
