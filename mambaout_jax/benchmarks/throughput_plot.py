# SPDX-License-Identifier: Apache-2.0
"""The figure of the comparison of whole models: published accuracy against measured speed."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure
from mambaout_jax.benchmarks.jax_models import OURS
from mambaout_jax.models import find_variant, list_models

_EMPHASISED = "mambaout"  # the family that the library is about
_EMPHASIS = COLORS[1]
_OTHERS = (COLORS[0], COLORS[2], COLORS[3], COLORS[4], COLORS[5], "#7A7A7A", "#8C564B", INK)
_MARKERS = "sD^v<>o"  # one fewer, so that the pairs with colours differ for long
_GRID = "#D9D9D9"
_SIZE = (900, 640)  # pixels; the README shows as many across
_TEXT_SIZE = 7.5  # points
_MARKER = 10  # pixels across
_GAPS = (
    3,
    12,
    24,
    38,
    54,
    72,
)  # pixels from a marker to its label, which takes the first that is free
_ROOM = 1.35  # times the fastest, and over the slowest, for labels
_NEAR = 100  # pixels from point to point that make a crowd
_LEADER = {"arrowstyle": "-", "color": "#A0A0A0", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


class Point(NamedTuple):
    """Attributes:
    name: the model.
    family: its family.
    speed: images per second, measured.
    top1: accuracy in percent, published.
    """

    name: str
    family: str
    speed: float
    top1: float


class _Box(NamedTuple):
    """Pixels, from the lower left corner of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0) * max(height, 0)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


def points_of(result: dict[str, Any]) -> list[Point]:
    """Models of ours whose inference was measured at the image size of their published accuracy.

    Args:
        result: the result of `throughput.run`.
    """
    points = []
    for row in result["rows"]:
        name, speeds = row["model"], row["images_per_second"]
        if row["pass"] != "inference" or OURS not in speeds or name not in list_models():
            continue
        family, variant = find_variant(name)
        if variant.top1 and variant.image_size == result["image_size"]:
            label = family.__name__.rpartition(".")[2]
            points.append(Point(name, label, speeds[OURS]["median"], variant.top1))
    return points


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Draws a point for each of `points_of(result)`, with its name, as a PNG file.

    The points of MambaOut are joined by a line and their names are bold.

    Args:
        result: the result of `throughput.run`, with at least one such point.
        path: the PNG file to write.
    """
    save_figure(_figure(result), path)


def _figure(result: dict[str, Any]) -> Any:
    points = points_of(result)
    figure = new_figure(*_SIZE, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot()
    _style(axes, points)
    others = dict.fromkeys(point.family for point in points if point.family != _EMPHASISED)
    styles = dict(
        zip(others, zip(itertools.cycle(_OTHERS), itertools.cycle(_MARKERS)), strict=False)
    )
    for family, (color, marker) in styles.items():
        chosen = [point for point in points if point.family == family]
        _plot(axes, chosen, color=color, marker=marker, linestyle="none", zorder=3)
    chosen = sorted((p for p in points if p.family == _EMPHASISED), key=lambda p: p.speed)
    _plot(axes, chosen, color=_EMPHASIS, marker="o", linewidth=1.5, zorder=4)
    _write_captions(figure, axes, result)
    figure.draw_without_rendering()  # the layout moves the axes, and labels stand in pixels
    figure.set_layout_engine("none")
    _label(axes, points)
    return figure


def _plot(axes: Any, points: Sequence[Point], **style: Any) -> None:
    speeds = [point.speed for point in points]
    accuracies = [point.top1 for point in points]
    size = _MARKER * 72 / axes.figure.dpi
    axes.plot(speeds, accuracies, markersize=size, markeredgecolor="white", **style)


def _style(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    speeds = [point.speed for point in points]
    axes.set_xlim(min(speeds) / _ROOM, max(speeds) * _ROOM)
    axes.margins(y=0.08)
    axes.tick_params(which="both", labelsize=_TEXT_SIZE, color=_GRID, labelcolor=INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)


def _write_captions(figure: Any, axes: Any, result: dict[str, Any]) -> None:
    where = result["environment"]
    machine = where["device"]
    if where["platform"] == "cpu":
        machine = f"{where['cpu_count']} CPU cores ({where['machine']})"
    axes.set_title(
        f"Published accuracy against throughput measured on {machine}",
        loc="left", fontsize=10, color=INK,
    )  # fmt: skip
    text = {"fontsize": _TEXT_SIZE, "color": INK}
    axes.set_ylabel("ImageNet-1k top-1 (%), as published: not measured here", **text)
    axes.set_xlabel(
        f"images per second, measured: inference, batch {result['batch_size']} at "
        f"{result['image_size']} pixels, {result['dtype']}, median of {result['rounds']} rounds",
        **text,
    )


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Writes each name where it hides no marker, no line and no other name.

    MambaOut's choose first, then those of the most crowded points.
    """
    from matplotlib.font_manager import FontProperties

    canvas = axes.figure.canvas.get_renderer()
    pixel = 72 / axes.figure.dpi
    frame = _Box(*axes.bbox.extents)
    spots = [axes.transData.transform((point.speed, point.top1)) for point in points]
    bold = [point.family == _EMPHASISED for point in points]
    line = _between([spot for spot, on_line in zip(spots, bold, strict=True) if on_line])
    taken = [_around(x, y, _MARKER / 2) for x, y in spots] + [_around(x, y, 1) for x, y in line]
    crowds = [sum(np.hypot(*(spot - other)) < _NEAR for other in spots) for spot in spots]
    for i in sorted(range(len(points)), key=lambda i: (not bold[i], -crowds[i])):
        point, (x, y) = points[i], spots[i]
        font = FontProperties(size=_TEXT_SIZE, weight="bold" if bold[i] else "normal")
        width = canvas.get_text_width_height_descent(point.name, font, False)[0]
        height = canvas.get_text_width_height_descent("lp", font, False)[1]
        boxes = list(_places(x, y, width, height))
        hidden = [
            sum(box.overlap(other) for other in taken) + box.area - box.overlap(frame)
            for box in boxes
        ]
        chosen = hidden.index(min(hidden))
        box, far = boxes[chosen], chosen >= len(boxes) // len(_GAPS)
        taken.append(box)
        axes.annotate(
            point.name,
            (point.speed, point.top1),
            ((box.left - x) * pixel, (box.bottom - y) * pixel),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontproperties=font,
            color=_EMPHASIS if bold[i] else INK,
            arrowprops=_LEADER if far else None,
            zorder=5,
        )


def _between(spots: Sequence[Any]) -> list[Any]:
    """Points on the line that joins these from left to right."""
    ordered = sorted(spots, key=lambda spot: spot[0])
    steps = np.linspace(0, 1, 40)
    pairs = itertools.pairwise(ordered)
    return [one + step * (other - one) for one, other in pairs for step in steps]


def _around(x: float, y: float, half: float) -> _Box:
    return _Box(x - half, y - half, x + half, y + half)


def _places(x: float, y: float, width: float, height: float) -> Iterator[_Box]:
    """Boxes for a label around a marker, the preferred ones first: beside, above and below it."""
    for gap in _GAPS:
        away = _MARKER / 2 + gap
        left, right = x - away - width, x + away
        below, above = y - away - height, y + away
        middle, centre = y - height / 2, x - width / 2
        for a, b in (
            (right, middle), (left, middle), (centre, above), (centre, below),
            (right, above), (right, below), (left, above), (left, below),
        ):  # fmt: skip
            yield _Box(a, b, a + width, b + height)
