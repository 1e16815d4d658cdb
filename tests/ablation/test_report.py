# SPDX-License-Identifier: Apache-2.0
"""Tables and figure of the grid, on results made by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.ablation.grid import SEES_THE_ANSWER
from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.report import as_markdown, draw, gain, mean_and_error, verdict

AHEAD = ("conv+ssm bidirectional", "attention full")


def task(name, *, is_long, autoregressive, accuracies):
    cells = []
    for mixer in MIXERS:
        if autoregressive and mixer in AHEAD:
            cells.append({"mixer": mixer, "reason": SEES_THE_ANSWER})
            continue
        runs = [{"accuracy": x, "bits": 2 * x} for x in accuracies.get(mixer, (0.5, 0.5))]
        cells.append(
            {
                "mixer": mixer,
                "hidden": 40,
                "parameters": 12_345,
                "macs": 1_234_567,
                "compile_seconds": 2.5,
                "step_milliseconds": {"median": 7.25, "min": 7.0, "max": 9.0},
                "runs": runs,
            }
        )
    return {
        "name": name,
        "length": 256 if is_long else 64,
        "length_ratio": 4.0 if is_long else 0.5,
        "long": is_long,
        "autoregressive": autoregressive,
        "chance": 0.125,
        "steps": 800,
        "cells": cells,
    }


@pytest.fixture
def result():
    kinds = [
        ("digits", False, False, {"conv": (0.96, 0.98), "conv+ssm bidirectional": (0.94, 0.98)}),
        ("next_pixel", False, True, {"conv": (0.5, 0.5), "conv+ssm causal": (0.6, 0.6)}),
        ("matching", True, False, {"conv": (0.5, 0.5), "conv+ssm bidirectional": (0.7, 0.7)}),
        ("recall", True, True, {"conv": (0.1, 0.12), "conv+ssm causal": (0.3, 0.4)}),
    ]
    return {
        "preset": "small",
        "settings": {
            "width": 16, "depth": 2, "state_size": 8, "heads": 2, "kernel_size": 7,
            "batch_size": 16, "learning_rate": 0.005, "seeds": [0, 1],
        },
        "environment": {"device": "cpu", "cpu_count": 2, "jax": "0.10.2"},
        "seconds": 900.0,
        "missing": ["copying"],
        "tasks": [
            task(name, is_long=is_long, autoregressive=ar, accuracies=accuracies)
            for name, is_long, ar, accuracies in kinds
        ],
    }  # fmt: skip


def test_mean_and_error_are_those_of_the_sample():
    assert mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3, math.sqrt(7 / 3)))
    mean, error = mean_and_error([2.0])
    assert mean == 2
    assert math.isnan(error)


def test_gain_is_of_the_ssm_that_the_task_allows(result):
    digits, _, matching, recall = result["tasks"]
    assert gain(digits) == pytest.approx((-0.01, math.hypot(0.01, 0.02)))
    assert gain(matching) == pytest.approx((0.2, 0))
    assert gain(recall) == pytest.approx((0.24, math.hypot(0.01, 0.05)))


def test_verdict_holds_the_paper_against_the_grid(result):
    assert [verdict(task) for task in result["tasks"]] == [
        "expected: does not help; found: does not help (agrees)",
        "expected: does not help; found: helps (disagrees)",
        "expected: may help; found: helps (open)",
        "expected: helps; found: helps (agrees)",
    ]


@pytest.mark.parametrize(
    ("conv", "ssm", "words"),
    [
        ((0.1, 0.2), (0.2, 0.3), "found: undecided, more seeds are needed"),  # 10 ± 7.1
        ((0.3, 0.3), (0.34, 0.34), "found: does not help (disagrees)"),  # sure, and small
        ((0.5, 0.5), (0.56, 0.56), "found: helps (agrees)"),
        ((0.5, 0.5), (0.51, 0.55), "found: undecided, more seeds are needed"),  # 3 ± 2
        ((0.5,), (0.9,), "one seed: no finding"),
        ((0.12, 0.12), (0.17, 0.17), "neither learned it: no finding"),
    ],
)
def test_a_gain_must_be_sure_and_larger_than_five_points(conv, ssm, words):
    accuracies = {"conv": conv, "conv+ssm causal": ssm, "attention causal": (0.9, 0.9)}
    found = verdict(task("recall", is_long=True, autoregressive=True, accuracies=accuracies))
    assert found == f"expected: helps; {words}"


def test_markdown_shows_every_cell_and_why_one_is_empty(result):
    text = as_markdown(result)
    assert (
        "| recall | 256 | 4.00 | long, autoregressive | 800 | 12.5 | 11.0 ± 1.0 | 35.0 ± 5.0 "
        "| sees the answer | 50.0 ± 0.0 | sees the answer |"
    ) in text
    assert "| recall | +24.0 ± 5.1 | expected: helps; found: helps (agrees) |" in text
    assert "| recall | conv | 40 | 12,345 | 1.235 | 7.2 | 2.5 | 0.220 |" in text
    assert text.count("| 12,345 |") == 5 + 3 + 5 + 3
    assert "learning rate 0.005 and 2 seeds" in text
    assert "15 min. Not run: copying.\n" in text
    assert "Not run" not in as_markdown(result | {"missing": []})
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 4, 2 + 4, 2 + 16]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_figure_has_a_bar_as_high_as_the_accuracy(result, tmp_path):
    draw(result, tmp_path / "low.png")
    for cell in result["tasks"][0]["cells"]:
        if cell["mixer"] == "conv":
            cell["runs"] = [{"accuracy": 0.48}, {"accuracy": 0.49}]
    draw(result, tmp_path / "half.png")
    heights = []
    for name in ("low", "half"):
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        assert image.shape == (860, 1240, 3)
        panel = image[60:420, 60:620]
        blue = (panel[..., 2] - panel[..., 0] > 60) & (panel[..., 2] > 190)
        rows = np.flatnonzero(blue.sum(axis=1) > 20)
        heights.append(np.ptp(rows))
    assert heights[1] / heights[0] == pytest.approx(0.5, abs=0.04)
