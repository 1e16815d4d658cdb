# SPDX-License-Identifier: Apache-2.0
"""Figures: what is in the pixels of the PNG, where the points lie, and that no text overlaps."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from mambaout_jax.analysis.figures import (
    _confusion_figure,
    _curves_figure,
    _image_grid_figure,
    draw_confusion_matrix,
    draw_curves,
    draw_image_grid,
)

RED = (200, 30, 30)
GREY = (217, 217, 217)
BLUE, VERMILION = "#0072B2", "#D55E00"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def drawn(figure):
    """Pixels of a figure, drawn so that its parts know where they are."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def color_at(image, axes, x, y):
    """Of the pixel under a point in data coordinates."""
    right, up = axes.transData.transform((x, y))
    return tuple(image[image.shape[0] - 1 - int(up), int(right)])


def rgb(color):
    return tuple(round(255 * part) for part in to_rgb(color))


def boxes(texts):
    return [text.get_window_extent() for text in texts if text.get_text()]


def assert_apart_and_inside(texts, figure):
    assert not any("$" in text.get_text() and text.get_parse_math() for text in texts)
    extents = boxes(texts)
    assert len(extents) > 1
    for box in extents:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    for one, other in itertools.combinations(extents, 2):
        assert not one.overlaps(other)


def all_texts(figure):
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [*axes.get_children(), axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            texts += [text for place, text in ticks if low <= place <= high]
    return [text for text in texts if isinstance(text, Text)]


def run_lines(losses, top1=(), ema=()):
    """As a run writes them: training every 10 updates, evaluation every 20 on lines of its own."""
    lines = [
        {"step": 10 * i, "train/loss": loss, "train/learning_rate": 1e-3 / i}
        for i, loss in enumerate(losses, start=1)
    ]
    for i, value in enumerate(top1, start=1):
        lines.append({"step": 20 * i, "eval/loss": 2.0 / i, "eval/top1": value})
    for line, value in zip(lines[len(losses) :], ema, strict=False):
        line.update({"eval_ema/loss": line["eval/loss"] / 2, "eval_ema/top1": value})
    return sorted(lines, key=lambda line: line["step"])


def test_curves_lie_where_their_points_are():
    runs = {
        "a": run_lines([3.0, 2.0, 1.5, 1.25], [40.0, 60.0], [50.0, 70.0]),
        "b": run_lines([2.5, 1.0, 0.5, 0.25], [55.0, 80.0]),
    }
    figure = _curves_figure(runs)
    image = drawn(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Training loss",
        "Evaluation loss",
        "Top-1 accuracy (%)",
        "Learning rate",
    ]
    expected = [
        [(BLUE, "-", [3.0, 2.0, 1.5, 1.25]), (VERMILION, "-", [2.5, 1.0, 0.5, 0.25])],
        [(BLUE, "-", [2.0, 1.0]), (BLUE, "--", [1.0, 0.5]), (VERMILION, "-", [2.0, 1.0])],
        [(BLUE, "-", [40, 60]), (BLUE, "--", [50, 70]), (VERMILION, "-", [55, 80])],
        [(color, "-", [1e-3, 5e-4, 1e-3 / 3, 2.5e-4]) for color in (BLUE, VERMILION)],
    ]
    for axes, curves in zip(figure.axes, expected, strict=True):
        assert axes.get_xlabel() == "updates"
        assert axes.get_xlim()[0] == 0
        for line, (color, style, values) in zip(axes.lines, curves, strict=True):
            assert (line.get_color(), line.get_linestyle()) == (color, style)
            steps = [40 // len(values) * i for i in range(1, len(values) + 1)]
            np.testing.assert_array_equal(line.get_xydata(), np.stack((steps, values), axis=1))
    training, _, top1, _ = figure.axes
    for color, values in ((BLUE, [3.0, 2.0, 1.5, 1.25]), (VERMILION, [2.5, 1.0, 0.5, 0.25])):
        for index, value in enumerate(values):
            assert color_at(image, training, 10 * (index + 1), value) == rgb(color)
    assert color_at(image, training, 15, 2.5) == rgb(BLUE)  # halfway between two points
    assert color_at(image, top1, 30, 50) == rgb(BLUE)
    assert color_at(image, training, 15, 2.9) == (255, 255, 255)


def test_curves_break_at_values_that_are_not_finite():
    losses = [4.0, 4.0, math.nan, 4.0, math.inf, 4.0, 4.0]
    figure = _curves_figure({"a": run_lines(losses + [4.0] * 60 + [1.0])})
    image = drawn(figure)
    axes = figure.axes[0]
    for step, color in ((15, BLUE), (40, BLUE), (65, BLUE), (300, BLUE)):
        assert color_at(image, axes, step, 4.0) == rgb(color), step
    for step in (25, 30, 50, 55):
        # Nothing there, but the grid's line at 4.
        assert max(color_at(image, axes, step, 4.0)) - min(color_at(image, axes, step, 4.0)) == 0
    (line,) = axes.lines
    assert list(np.flatnonzero(line.get_markevery())) == [3]  # between two gaps, so it needs a mark


def test_curves_of_a_single_line_are_points(tmp_path):
    path = tmp_path / "one.png"
    draw_curves({"one": [{"step": 10, "train/loss": 1.0, "train/gradient_norm": 3.0}]}, path)
    image = pixels(path)
    found = np.argwhere((image == rgb(BLUE)).all(axis=-1))
    figure = _curves_figure({"one": [{"step": 10, "train/loss": 1.0}]})
    drawn(figure)
    (axes,) = figure.axes
    right, up = axes.transData.transform((10, 1.0))
    below_legend = found[found[:, 0] > 60]
    assert len(below_legend) > 10
    np.testing.assert_allclose(below_legend.mean(axis=0), (image.shape[0] - up, right), atol=1)


def test_curves_of_a_run_that_never_was_finite_leave_the_others():
    figure = _curves_figure({"a": run_lines([math.nan] * 3), "b": run_lines([3.0, 2.0, 1.0])})
    image = drawn(figure)
    assert color_at(image, figure.axes[0], 20, 2.0) == rgb(VERMILION)
    assert len(figure.legends[0].get_texts()) == 2


def test_curves_legend_shows_names_as_they_are_and_no_text_overlaps():
    for names in (
        ["_private", "$x^2$ and 5 $", "100% \\alpha"],
        [
            f"/data/runs/of/somebody/mambaout_tiny_with_a_very_long_name_{'x' * 60}_{i}"
            for i in "ab"
        ],
        [f"run {i}" for i in range(40)],
    ):
        lines = run_lines([3.0, 2.0, 1.5, 1.25], [40.0, 60.0], [50.0, 70.0])
        figure = _curves_figure(dict.fromkeys(names, lines))
        drawn(figure)
        shown = [text.get_text() for text in figure.legends[0].get_texts()]
        assert shown[len(names) :] == ["weights", "averaged weights"]
        for name, text in zip(names, shown, strict=False):
            assert text == name or (text[-1] == "…" and name.startswith(text[:-1]))
        assert ("…" in shown[0]) == (len(names[0]) > 60)
        assert_apart_and_inside(all_texts(figure), figure)
        colors = {tuple(to_rgb(line.get_color())) for line in figure.axes[0].lines}
        assert len(colors) == len(names)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "there are no runs"),
        ({"a": run_lines([1.0]), "b": []}, "run 'b' has no metrics"),
        ({"a": [{"step": 1, "train/speed": 2.0}]}, r"'train/loss'.* found are \['train/speed'\]"),
    ],
)
def test_curves_name_what_is_wrong(tmp_path, runs, message):
    with pytest.raises(ValueError, match=message):
        draw_curves(runs, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def framed(image):
    """What is inside the one red frame, and the frame's first row and column."""
    red = (image == RED).all(axis=-1)
    rows, columns = np.flatnonzero(red.sum(1) > 50), np.flatnonzero(red.sum(0) > 50)
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    for side in (red[top : top + 4, left:right], red[bottom - 3 : bottom, left:right]):
        assert side.all()
    return image[top + 4 : bottom - 3, left + 4 : right - 3], (top, left)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_shows_the_pixels_and_frames_what_is_highlighted(tmp_path, rng, channels):
    images = rng.integers(0, 190, (5, 16, 12, channels)).astype(np.uint8)  # none is the red
    titles = [f"image {i}" for i in range(5)]
    corners = []
    for index in range(5):
        draw_image_grid(images, titles, tmp_path / "grid.png", highlights=np.arange(5) == index)
        inside, corner = framed(pixels(tmp_path / "grid.png"))
        expected = np.broadcast_to(images[index], (16, 12, 3)).repeat(10, 0).repeat(10, 1)
        np.testing.assert_array_equal(inside, expected)
        corners.append(corner)
    draw_image_grid(images, titles, tmp_path / "plain.png")
    plain = pixels(tmp_path / "plain.png")
    assert not (plain == RED).all(axis=-1).any()
    for image, (top, left) in zip(images, corners, strict=True):
        shown = plain[top + 4 : top + 164, left + 4 : left + 124]
        np.testing.assert_array_equal(shown[5::10, 5::10], np.broadcast_to(image, (16, 12, 3)))
        assert tuple(plain[top + 3, left + 50]) == GREY
    # Three in the first row, two in the second.
    rows, columns = zip(*corners, strict=True)
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert columns[0] == columns[3] < columns[1] == columns[4] < columns[2]


@pytest.mark.parametrize(("columns", "shape"), [(1, (6, 1)), (4, (2, 4)), (9, (1, 6))])
def test_image_grid_has_so_many_columns(columns, shape):
    figure = _image_grid_figure(np.zeros((6, 8, 8, 1), np.uint8), list("abcdef"), columns, None)
    places = np.array([text.get_position() for text in figure.texts])
    assert (len(np.unique(places[:, 1])), len(np.unique(places[:, 0]))) == shape


def test_image_grid_shrinks_large_images_by_area(tmp_path):
    image = np.zeros((1, 640, 320, 3), np.uint8)
    image[:, :320, :, 0], image[:, 320:, :, 2] = 255, 255  # red above, blue below
    image[:, :, ::2] //= 2  # stripes of one pixel, which become their mean
    draw_image_grid(image, ["tall"], tmp_path / "grid.png", highlights=[True])
    inside, _ = framed(pixels(tmp_path / "grid.png"))
    assert inside.shape == (160, 80, 3)
    for part, channel in ((inside[5:75, 5:-5], 0), (inside[85:155, 5:-5], 2)):
        np.testing.assert_allclose(part[..., channel], (255 + 127) / 2, atol=2)
        np.testing.assert_array_equal(np.delete(part, channel, axis=-1), 0)


@pytest.mark.parametrize("count", [7, pytest.param(300, marks=pytest.mark.slow)])
def test_image_grid_titles_keep_to_their_images(count):
    titles = [
        f"{'black-footed ferret, Mustela nigripes $5 $' if i % 3 else '_$3$_'}\nas eel 98 %\n"
        f"{'W' * (i % 40)}"
        for i in range(count)
    ]
    highlights = [i % 3 == 0 for i in range(count)]
    figure = _image_grid_figure(np.zeros((count, 28, 28, 1), np.uint8), titles, None, highlights)
    image = drawn(figure)
    assert max(image.shape) < 5000
    assert len(figure.texts) == count
    for text, title, red in zip(figure.texts, titles, highlights, strict=True):
        assert rgb(text.get_color()) == (RED if red else (51, 51, 51))
        for shown, line in zip(text.get_text().split("\n"), title.split("\n"), strict=True):
            assert shown == line or (shown[-1] == "…" and line.startswith(shown[:-1]))
            assert shown == line or len(shown) > 8
    assert figure.texts[0].get_text() == "_$3$_\nas eel 98 %\n"
    assert "…" in figure.texts[1].get_text()
    assert_apart_and_inside(figure.texts[:40], figure)
    # No title of the first row reaches into a frame.
    frames = np.flatnonzero((image == RED).all(axis=-1).sum(axis=1) > 140)
    assert min(box.y0 for box in boxes(figure.texts[:3])) >= image.shape[0] - frames[0]


@pytest.mark.parametrize(
    ("images", "titles", "options", "message"),
    [
        (np.zeros((2, 8, 8, 3)), "ab", {}, r"images are float64 \(2, 8, 8, 3\); give uint8"),
        (np.zeros((8, 8, 3), np.uint8), "ab", {}, r"uint8 \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), "ab", {}, r"C of 1 or 3"),
        (np.zeros((0, 8, 8, 3), np.uint8), "", {}, r"are empty"),
        (np.zeros((2, 0, 8, 3), np.uint8), "ab", {}, r"are empty"),
        (np.zeros((2, 8, 8, 3), np.uint8), "a", {}, "1 titles for 2 images"),
        (np.zeros((2, 8, 8, 3), np.uint8), "ab", {"highlights": [True]}, "1 highlights for 2"),
        (np.zeros((2, 8, 8, 3), np.uint8), "ab", {"columns": 0}, "columns=0"),
        (np.zeros((500, 8, 8, 1), np.uint8), "a" * 500, {"columns": 1}, "more than 65535"),
    ],
)
def test_image_grid_names_what_is_wrong(tmp_path, images, titles, options, message):
    with pytest.raises(ValueError, match=message):
        draw_image_grid(images, list(titles), tmp_path / "grid.png", **options)
    assert list(tmp_path.iterdir()) == []


def cell_colors(matrix):
    totals = matrix.sum(axis=1, keepdims=True)
    colors = colormaps["Blues"](np.sqrt(matrix / np.maximum(totals, 1)), bytes=True)[..., :3]
    return np.where(totals[..., None] == 0, np.uint8(GREY[0]), colors)


@pytest.mark.parametrize("classes", [1, 3, 21, pytest.param(60, marks=pytest.mark.slow)])
def test_confusion_matrix_colors_are_shares_of_the_row(tmp_path, rng, classes):
    matrix = rng.integers(0, 50, (classes, classes)) * (rng.random((classes, classes)) < 0.5)
    matrix[classes // 2] = 0
    names = [f"class {i}" for i in range(classes)]
    draw_confusion_matrix(matrix, names, tmp_path / "matrix.png")
    image = pixels(tmp_path / "matrix.png")
    figure = _confusion_figure(matrix, names)
    drawn(figure)
    axes = figure.axes[0]
    corner = 0.3  # away from the count in the middle
    for row, column in itertools.product(range(classes), repeat=2):
        shown = color_at(image, axes, column - corner, row - corner)
        np.testing.assert_allclose(shown, cell_colors(matrix)[row, column], atol=1)


def test_confusion_matrix_of_1000_classes_has_a_pixel_for_each_cell(rng):
    matrix = np.zeros((1000, 1000), int)
    matrix[np.arange(1000), rng.permutation(1000)] = 3
    figure = _confusion_figure(matrix, [f"class {i}" for i in range(1000)])
    image = drawn(figure)
    box = figure.axes[0].bbox
    assert (box.width, box.height) == pytest.approx((1000, 1000))
    top, left = round(image.shape[0] - box.y1), round(box.x0)
    shown = image[top : top + 1000, left : left + 1000]
    dark = (shown == cell_colors(matrix)[matrix > 0][0]).all(axis=-1)
    inside = slice(2, -2)  # the frame covers the outermost
    np.testing.assert_array_equal(dark[inside, inside], (matrix > 0)[inside, inside])


@pytest.mark.parametrize(("classes", "written"), [(1, True), (20, True), (21, False)])
def test_confusion_matrix_writes_counts_up_to_20_classes(rng, classes, written):
    matrix = rng.integers(0, 1_200_000, (classes, classes))
    figure = _confusion_figure(matrix, [f"class {i}" for i in range(classes)])
    drawn(figure)
    axes = figure.axes[0]
    counts = {text.get_position(): int(text.get_text()) for text in axes.texts}
    expected = {(column, row): count for (row, column), count in np.ndenumerate(matrix)}
    assert counts == (expected if written else {})
    cell = axes.bbox.width / classes
    assert all(box.width < cell and box.height < cell for box in boxes(axes.texts))


LARGE = [pytest.param(count, marks=pytest.mark.slow) for count in (100, 1000)]


@pytest.mark.parametrize("classes", [2, 10, 45, *LARGE])
@pytest.mark.parametrize("name", ["{}", "${}_x", "{} a long name of a fish, Tinca tinca"])
def test_confusion_matrix_names_do_not_overlap(classes, name):
    names = [name.format(i) for i in range(classes)]
    figure = _confusion_figure(np.eye(classes, dtype=int), names)
    drawn(figure)
    axes = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        ticks = list(zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True))
        assert len(ticks) >= min(classes, 30)
        for place, text in ticks:
            full, shown = names[round(place)], text.get_text()
            assert shown == full or (shown[-1] == "…" and full.startswith(shown[:-1]))
    texts = [text for text in all_texts(figure) if text not in axes.texts]  # without the counts
    assert_apart_and_inside(texts, figure)
    shown = {text.get_text() for text in texts}
    assert {"true class", "predicted class", "share of the true class", "50 %"} <= shown


def test_confusion_matrix_checks_its_matrix(tmp_path):
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        draw_confusion_matrix(np.eye(3, dtype=int), ["a", "b"], tmp_path / "matrix.png")
    assert list(tmp_path.iterdir()) == []


def test_names_that_the_font_cannot_draw_are_escaped(recwarn):
    image = np.zeros((1, 8, 8, 3), np.uint8)
    figure = _image_grid_figure(image, ["größe \U00020000\n\u732b \udce9"], 1, None)
    drawn(figure)
    assert figure.texts[0].get_text() == "größe \\U00020000\n\\u732b \\udce9"
    assert [str(warning.message) for warning in recwarn] == []


def test_figures_leave_no_state_and_import_matplotlib_only_to_draw(tmp_path):
    code = f"""
import sys
from mambaout_jax.analysis.figures import draw_curves
assert "matplotlib" not in sys.modules
from matplotlib import rcParams
names = set(rcParams) - {{"backend"}}  # reading it imports pyplot
before = [rcParams[name] for name in names]
draw_curves({{"a": [{{"step": 1, "train/loss": 2.0}}]}}, {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert [rcParams[name] for name in names] == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
    assert pixels(tmp_path / "a.png").shape[:2] == (461, 620)
