# SPDX-License-Identifier: Apache-2.0
"""The picture of the scan benchmark: lines, the threshold and the crosses lie where they should."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mambaout_jax.analysis.figures import COLORS
from mambaout_jax.benchmarks.scan_plot import _figure, draw

BLUE, VERMILION = COLORS[0], COLORS[1]
SPAN = {"chunked": 2.0, "attention": 0.1}  # ms per call at all lengths


def make_rows(widths=(96,)):
    rows = []
    for width in widths:
        for name in ("forward", "forward+backward"):
            for mixer, middle in SPAN.items():
                for length, batch in ((49, 64), (3136, 1), (12544, 1)):
                    row = {"mixer": mixer, "width": width, "length": length, "batch": batch,
                           "pass": name, "status": "measured", "median_ms": middle,
                           "min_ms": middle, "max_ms": middle}  # fmt: skip
                    if (mixer, length) == ("attention", 12544):
                        row |= {"status": "too large", "median_ms": None, "min_ms": None,
                                "max_ms": None}  # fmt: skip
                    rows.append(row)
    return {"rows": rows}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The pixels of the file, and the figure that knows where its parts are."""
    path = tmp_path_factory.mktemp("plot") / "scan.png"
    draw(make_rows(), path)
    figure = _figure(make_rows())
    figure.canvas.draw()
    return np.asarray(Image.open(path).convert("RGB")).astype(int), figure


def at(picture, axes, x, y):
    """Row and column of the pixel at data coordinates."""
    right, up = axes.transData.transform((x, y))
    return picture.shape[0] - 1 - int(up), int(right)


def near(pixels, color):
    wanted = np.array([round(255 * part) for part in to_rgb(color)])
    return (np.abs(pixels - wanted).max(-1) < 40).any()


def test_threshold_is_a_vertical_line_at_six_times_the_width(picture):
    pixels, figure = picture
    assert len(figure.axes) == 2
    for axes in figure.axes:
        low, high = axes.get_ylim()
        top, column = at(pixels, axes, 6 * 96, high)
        bottom, _ = at(pixels, axes, 6 * 96, low)
        dark = (pixels[top:bottom].max(-1) < 110).mean(axis=0)  # share of each column
        line = column - 3 + int(dark[column - 3 : column + 4].argmax())
        assert dark[line] > 0.25  # dotted
        assert abs(line - column) <= 1
        others = np.r_[dark[column - 40 : column - 4], dark[column + 5 : column + 40]]
        assert others.max() < 0.1
        assert [text.get_text() for text in axes.texts] == ["L = 6D = 576"]


def test_points_are_microseconds_per_token(picture):
    pixels, figure = picture
    for axes in figure.axes:
        for length, tokens, mixer, color in (
            (49, 3136, "chunked", VERMILION),
            (12544, 12544, "chunked", VERMILION),
            (3136, 3136, "attention", BLUE),
        ):
            row, column = at(pixels, axes, length, 1e3 * SPAN[mixer] / tokens)
            assert near(pixels[row - 1 : row + 2, column - 1 : column + 2], color)


def test_lengths_that_were_not_measured_are_crossed_at_the_top(picture):
    pixels, figure = picture
    for axes in figure.axes:
        low, high = np.log(axes.get_ylim())
        row, column = at(pixels, axes, 12544, np.exp(low + 0.975 * (high - low)))
        assert near(pixels[row - 1 : row + 2, column - 1 : column + 2], BLUE)
        _, column = at(pixels, axes, 3136, 1)
        assert not near(pixels[row - 4 : row + 5, column - 4 : column + 5], BLUE)


def test_each_width_has_a_row_of_panels_with_its_own_threshold():
    rows = make_rows((96, 384))["rows"]
    figure = _figure({"rows": [*rows, rows[0] | {"length": 13000}]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "D = 96, forward",
        "D = 96, forward+backward",
        "D = 384, forward",
        "D = 384, forward+backward",
    ]
    lines = [axes.texts[0].get_text() for axes in figure.axes]
    assert lines == ["L = 6D = 576"] * 2 + ["L = 6D = 2,304"] * 2
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["49", "3,136", "12,544"]  # 13,000 would be written over 12,544
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["chunked", "attention", "not measured"]
