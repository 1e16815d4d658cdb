# SPDX-License-Identifier: Apache-2.0
"""Figures as PNG files: curves of runs, grids of images, confusion matrices.

They are drawn with Matplotlib's objects: no display, no `pyplot`, no state between two figures.
Names that a user gives are shown as they are, never read as mathematics; shortened where there is
no room, and with escapes for what the font cannot draw.
"""

import bisect
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mambaout_jax.metrics.confusion import check_confusion_matrix

# Okabe and Ito's colours, without yellow and black: colour-blind readers can tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#333333"
_HIGHLIGHT = "#C81E1E"
_FAINT = "#D9D9D9"

# Metrics of each panel, by its title; the second metric is that of the averaged weights.
_PANELS = {
    "Training loss": ("train/loss",),
    "Evaluation loss": ("eval/loss", "eval_ema/loss"),
    "Top-1 accuracy (%)": ("eval/top1", "eval_ema/top1"),
    "Mean IoU (%)": ("eval/miou", "eval_ema/miou"),
    "Box AP (%)": ("eval/box_ap", "eval_ema/box_ap"),
    "Mask AP (%)": ("eval/mask_ap", "eval_ema/mask_ap"),
    "Learning rate": ("train/learning_rate",),
}
_FEW_POINTS = 40  # a curve of at most so many points has all of them marked

# A power of two, so that sizes in pixels are exact when Matplotlib converts them from inches.
_DPI = 128
_LINE = 16  # pixels from line to line of text
_TEXT_SIZE = 7.5  # points

_IMAGE_SIDE = 160  # pixels, longer side of an image in a grid
_FRAME = 4  # pixels
_GAP = 12  # pixels
_MAX_SIDE = 2**16 - 1  # pixels that Matplotlib can draw

_MATRIX_SIDE = 700  # pixels; at least this large, unless there are very few classes
_MAX_CELL = 160  # pixels
_MAX_LABEL = 180  # pixels, width of a class's name
_MAX_COUNTS = 20  # counts are written into the cells up to this number of classes


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path | str) -> None:
    """Draws the losses, accuracy and learning rate of several runs against updates.

    Args:
        runs: by name, lines such as `{"step": 400, "train/loss": 0.61}`. A metric that is missing
            from a line leaves no gap in its curve; a value that is not finite does.
        path: the PNG file to write.

    Raises:
        ValueError: there are no runs, a run has no lines, or no line has a metric to draw.
    """
    save_figure(_curves_figure(runs), path)


def draw_image_grid(
    images: np.ndarray,
    titles: Sequence[str],
    path: Path | str,
    *,
    columns: int | None = None,
    highlights: Sequence[bool] | np.ndarray | None = None,
    side: int = _IMAGE_SIDE,
) -> None:
    """Draws images in rows, each under its title.

    Args:
        images: uint8 (B, H, W, C), C = 1 (greyscale) or 3 (RGB). Small images are enlarged by a
            whole factor, so that their pixels stay squares.
        titles: one title for each image; its lines are shortened to the width of the image.
        path: the PNG file to write.
        columns: images per row; None: about as many as there are rows.
        highlights: whether each image has a red frame and title, for example because a model got it
            wrong.
        side: pixels, about the longer side of an image as it is drawn.

    Raises:
        ValueError: there are no images, the array has the wrong type or shape, the counts differ,
            or the figure would be larger than 65535 pixels.
    """
    save_figure(_image_grid_figure(images, titles, columns, highlights, side), path)


def draw_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path | str) -> None:
    """Draws which share of each class's examples was predicted as each class.

    The colour scale follows the square root, which keeps rare confusions visible; a class without
    examples is grey. With up to 20 classes the counts are written into the cells.

    Args:
        matrix: int (K, K), true class by predicted class (`metrics.confusion.confusion_matrix`).
        class_names: the K names.
        path: the PNG file to write.

    Raises:
        ValueError: the matrix or the names are unsuitable (`check_confusion_matrix`).
    """
    save_figure(_confusion_figure(matrix, class_names), path)


def _curves_figure(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    if not runs:
        raise ValueError("there are no runs to draw; give at least one")
    for name, lines in runs.items():
        if not lines:
            raise ValueError(f"run {name!r} has no metrics; leave it out or train it further")
    found = {key for lines in runs.values() for line in lines for key in line}
    panels = {title: names for title, names in _PANELS.items() if found & set(names)}
    if not panels:
        wanted = [metric for metrics in _PANELS.values() for metric in metrics]
        raise ValueError(f"no run has any of {wanted}; found are {sorted(found - {'step'})}")

    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(620 * columns, 400 * rows + 40, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    colors = dict(zip(runs, _run_colors(len(runs)), strict=True))
    last = max(line["step"] for lines in runs.values() for line in lines)
    for index, (title, metrics) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, index)
        _style_curves(axes, title)
        axes.set_xlim(0, 1.02 * max(last, 1))
        for name, lines in runs.items():
            for metric, style in zip(metrics, ("-", "--"), strict=False):
                _plot(axes, lines, metric, color=colors[name], linestyle=style)
    averaged = any(metric.startswith("eval_ema/") for metric in found)
    _add_legend(figure, colors, averaged)
    return figure


def _run_colors(count: int) -> Sequence[Any]:
    if count <= len(COLORS):
        return COLORS[:count]
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.92, count)))  # its end is too pale for lines


def _style_curves(axes: Any, title: str) -> None:
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator, StrMethodFormatter

    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("updates", fontsize=_TEXT_SIZE, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.tick_params(labelsize=_TEXT_SIZE, color=_FAINT, labelcolor=INK)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)


def _plot(axes: Any, lines: Sequence[Mapping[str, float]], metric: str, **style: Any) -> None:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    if not points:
        return
    steps, values = np.asarray(points, np.float64).T
    finite = np.isfinite(values)
    # A point between two gaps is on no line, so that only a marker shows it.
    padded = np.pad(finite, 1)
    isolated = finite & ~padded[:-2] & ~padded[2:]
    marked = finite & (isolated | (len(points) <= _FEW_POINTS))
    axes.plot(
        steps,
        np.where(finite, values, np.nan),
        marker="o",
        markersize=3.5,
        markevery=marked,
        linewidth=1.5,
        **style,
    )


def _add_legend(figure: Any, colors: Mapping[str, Any], averaged: bool) -> None:
    from matplotlib.lines import Line2D

    names = [_fit(name, 420, figure) for name in colors]
    handles = [Line2D([], [], color=color, linewidth=2.5) for color in colors.values()]
    if averaged:
        names += ["weights", "averaged weights"]
        handles += [Line2D([], [], color=INK, linestyle=style) for style in ("-", "--")]
    column = 60 + max(_text_width(name, figure) for name in names)  # with line and spacing
    in_row = max(1, int(figure.bbox.width / column))
    figure.set_figheight(figure.get_figheight() + 21 / _DPI * math.ceil(len(names) / in_row))
    legend = figure.legend(
        handles=handles,
        labels=names,
        loc="outside upper left",
        ncols=in_row,
        frameon=False,
        fontsize=_TEXT_SIZE,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _image_grid_figure(
    images: np.ndarray,
    titles: Sequence[str],
    columns: int | None,
    highlights: Sequence[bool] | np.ndarray | None,
    side: int = _IMAGE_SIDE,
) -> Any:
    images = np.asarray(images)
    highlights = [False] * len(images) if highlights is None else highlights
    _check_images(images, titles, columns, highlights)
    columns = min(len(images), columns or math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    tiles = [_tile(image, side) for image in images]
    height, width = tiles[0].shape[:2]
    title_height = _LINE * max(title.count("\n") + 1 for title in titles)
    cell_width = max(width + 2 * _FRAME, 110) + _GAP  # room for a title even above narrow images
    cell_height = title_height + height + 2 * _FRAME + _GAP
    size = columns * cell_width + _GAP, rows * cell_height + _GAP
    if max(size) > _MAX_SIDE:
        raise ValueError(
            f"{len(images)} images in {columns} columns make {size[0]} x {size[1]} pixels, more "
            f"than {_MAX_SIDE}; give fewer images or another number of columns"
        )
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    figure = new_figure(*size)
    for index, (tile, title, red) in enumerate(zip(tiles, titles, highlights, strict=True)):
        row, column = divmod(index, columns)
        top = _GAP + row * cell_height + title_height + _FRAME
        left = _GAP + column * cell_width + (cell_width - _GAP - width) // 2
        frame, color = (_FRAME, _HIGHLIGHT) if red else (1, _FAINT)
        frame_box = canvas[top - frame : top + height + frame, left - frame : left + width + frame]
        frame_box[:] = tuple(bytes.fromhex(color[1:]))
        canvas[top : top + height, left : left + width] = tile
        lines = [_fit(line, cell_width - _GAP, figure) for line in title.split("\n")]
        figure.text(
            (left + width / 2) / size[0],
            1 - (top - _FRAME) / size[1],
            "\n".join(lines),
            ha="center",
            va="bottom",
            fontsize=_TEXT_SIZE,
            color=color if red else INK,
            parse_math=False,
        )
    figure.figimage(canvas, zorder=-1)  # below the texts
    return figure


def _check_images(
    images: np.ndarray,
    titles: Sequence[str],
    columns: int | None,
    highlights: Sequence[bool] | np.ndarray,
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {images.shape}; give uint8 (B, H, W, C) with C of 1 or 3"
        )
    if not images.size:
        raise ValueError(f"images {images.shape} are empty; give at least one")
    for name, values in {"titles": titles, "highlights": highlights}.items():
        if len(values) != len(images):
            raise ValueError(f"{len(values)} {name} for {len(images)} images; give one for each")
    if columns is not None and columns < 1:
        raise ValueError(f"columns={columns}; give at least 1")


def _tile(image: np.ndarray, side: int) -> np.ndarray:
    """The image as RGB, with a longer side of about `side`."""
    height, width, channels = image.shape
    image = np.broadcast_to(image, (height, width, 3)) if channels == 1 else image
    scale = side / max(height, width)
    if scale >= 1:
        return image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _confusion_figure(matrix: np.ndarray, class_names: Sequence[str]) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    check_confusion_matrix(matrix, class_names)
    classes = len(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(
        np.broadcast_to(totals == 0, matrix.shape), matrix / np.maximum(totals, 1)
    )
    # Cells of whole pixels: otherwise some would vanish or be drawn twice as large.
    cell = min(_MAX_CELL, math.ceil(_MATRIX_SIDE / classes))
    side = cell * classes
    every = math.ceil(_LINE / cell)
    ticks = range(0, classes, every)
    probe = new_figure(1, 1)
    labels = [_fit(class_names[tick], _MAX_LABEL, probe) for tick in ticks]
    widest = math.ceil(max(_text_width(label, probe) for label in labels))
    upright = widest > cell * every - 4
    left = widest + 48
    bottom = (widest if upright else _LINE) + 48
    width = left + side + 120
    height = bottom + side + 16
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    image = axes.imshow(
        shares,
        cmap=colormaps["Blues"].with_extremes(bad=_FAINT),
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest",
    )
    axes.set_xticks(ticks, labels, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set_xlabel("predicted class", fontsize=_TEXT_SIZE, color=INK)
    axes.set_ylabel("true class", fontsize=_TEXT_SIZE, color=INK)
    axes.tick_params(labelsize=_TEXT_SIZE, color=_FAINT, labelcolor=INK)
    axes.spines[:].set_color(_FAINT)
    if classes <= _MAX_COUNTS:
        _write_counts(axes, matrix, shares, cell)
    bar = figure.add_axes(((left + side + 20) / width, bottom / height, 14 / width, side / height))
    scale = figure.colorbar(image, cax=bar, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    scale.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    scale.ax.tick_params(labelsize=_TEXT_SIZE, color=_FAINT, labelcolor=INK)
    scale.set_label("share of the true class", fontsize=_TEXT_SIZE, color=INK)
    scale.outline.set_edgecolor(_FAINT)
    return figure


def _write_counts(axes: Any, matrix: np.ndarray, shares: Any, cell: int) -> None:
    digits = len(str(matrix.max()))
    pixels = min(20, 0.85 * cell / (0.64 * digits))  # a digit is 0.64 of its size wide
    for (row, column), count in np.ndenumerate(matrix):
        dark = shares[row, column] > 0.4
        axes.text(
            column,
            row,
            str(count),
            ha="center",
            va="center_baseline",
            fontsize=72 * pixels / _DPI,
            color="white" if dark else INK if count else "#B0B0B0",
        )


def new_figure(width: int, height: int, **options: Any) -> Any:
    """An empty figure of `width` x `height` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path | str) -> None:
    """Writes a figure as a PNG file, whatever the suffix of `path`."""
    figure.canvas.print_png(path)


def _fit(text: str, room: float, figure: Any) -> str:
    """The text as it can be drawn, shortened with "…" if it is wider than `room` pixels."""
    known = _characters()
    text = "".join(
        char if ord(char) in known else char.encode("unicode_escape").decode() for char in text
    )
    if _text_width(text, figure) <= room:
        return text
    # The width grows with the length, so that bisection finds the cut with few measurements.
    length = bisect.bisect_right(
        range(len(text)), room, key=lambda count: _text_width(f"{text[:count]}…", figure)
    )
    return f"{text[: max(length - 1, 0)].rstrip()}…"


@functools.cache
def _characters() -> frozenset[int]:
    """Those that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _text_width(text: str, figure: Any) -> float:
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=_TEXT_SIZE)
    return figure.canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]
