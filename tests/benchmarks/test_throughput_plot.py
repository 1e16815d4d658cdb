# SPDX-License-Identifier: Apache-2.0
"""The picture of accuracy against speed: whose points it has, where, and names that can be read."""

import itertools

import pytest
from matplotlib.text import Text

from mambaout_jax.analysis.figures import COLORS
from mambaout_jax.benchmarks.throughput_plot import _figure, points_of
from mambaout_jax.models import find_variant, list_models

MAMBAOUT = [f"mambaout_{size}" for size in ("femto", "kobe", "tiny", "small", "base")]
DRAWN = [
    name
    for name in list_models()
    if find_variant(name)[1].top1 and ("mamba" in name or "vim" in name)
]


def result_of(speeds, passed="inference", image_size=224):
    where = {"device": "cpu", "platform": "cpu", "machine": "x86_64", "cpu_count": 2}
    rows = [
        {"model": name, "pass": passed, "images_per_second": {"ours": {"median": speed}}}
        for name, speed in speeds.items()
    ]
    return {"environment": where, "dtype": "float32", "batch_size": 2, "image_size": image_size,
            "rounds": 5, "rows": rows}  # fmt: skip


def by_cost(names):
    """Speeds in the order of multiply-accumulates, close to one another."""
    return {name: 6e10 / (find_variant(name)[1].macs + 1e8) for name in names}


@pytest.fixture(scope="module")
def figure():
    figure = _figure(result_of(by_cost(DRAWN)))
    figure.canvas.draw()
    return figure


def test_points_are_measured_speeds_and_published_accuracies(figure):
    (axes,) = figure.axes
    drawn = {tuple(xy) for line in axes.lines for xy in line.get_xydata()}
    expected = {(speed, find_variant(name)[1].top1) for name, speed in by_cost(DRAWN).items()}
    assert drawn == expected
    assert axes.get_xscale() == "log"


def test_names_hide_no_other_name_and_no_point(figure):
    (axes,) = figure.axes
    texts = {text.get_text(): text for text in axes.texts}
    assert texts.keys() == set(DRAWN)
    boxes = {name: Text.get_window_extent(text) for name, text in texts.items()}
    for (_, one), (_, other) in itertools.combinations(boxes.items(), 2):
        assert not one.padded(-1).overlaps(other.padded(-1))
    for line in axes.lines:
        for x, y in axes.transData.transform(line.get_xydata()):
            assert not any(box.padded(-1).contains(x, y) for box in boxes.values())
    for box in boxes.values():
        assert axes.bbox.padded(1).contains(box.x0, box.y0)
        assert axes.bbox.padded(1).contains(box.x1, box.y1)


def test_mambaout_stands_out(figure):
    (axes,) = figure.axes
    bold = {text.get_text() for text in axes.texts if text.get_weight() == "bold"}
    assert bold == set(MAMBAOUT)
    (line,) = (line for line in axes.lines if line.get_linestyle() == "-")
    assert len(line.get_xydata()) == len(MAMBAOUT)
    assert line.get_color() == COLORS[1]
    families = {find_variant(name)[0] for name in DRAWN}
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == len(families)


def test_captions_say_what_is_published_and_what_is_measured_where(figure):
    (axes,) = figure.axes
    title = axes.get_title(loc="left")
    assert title == "Published accuracy against throughput measured on 2 CPU cores (x86_64)"
    assert axes.get_ylabel() == "ImageNet-1k top-1 (%), as published: not measured here"
    assert axes.get_xlabel() == (
        "images per second, measured: inference, batch 2 at 224 pixels, float32, median of 5 rounds"
    )


def test_only_models_with_a_published_accuracy_at_this_size_are_points():
    speeds = {"mambaout_tiny": 10.0, "mambaout_tiny_ssm": 5.0, "resnet50": 20.0}
    (point,) = points_of(result_of(speeds))
    assert point == ("mambaout_tiny", "mambaout", 10.0, 82.7)
    assert points_of(result_of(speeds, passed="training")) == []
    assert points_of(result_of(speeds, image_size=288)) == []
