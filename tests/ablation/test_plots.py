# SPDX-License-Identifier: Apache-2.0
"""Figures of the grid: the points that they show are those of the result."""

import numpy as np
import pytest
from support.grid_results import cell, make_result

from mambaout_jax.ablation.plots import draw_all, draw_depths, draw_distances, draw_gains


def lines_of(axes):
    return [np.column_stack(line.get_data()) for line in axes.get_lines()]


def test_gains_stand_in_the_panel_of_their_kind():
    figure = draw_gains(make_result())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "short, fully visible (paper: the SSM does not help)",
        "short, autoregressive (paper: the SSM does not help)",
        "long, fully visible (paper: the SSM may help)",
        "long, autoregressive (paper: the SSM helps)",
    ]
    recall = figure.axes[3]
    assert [label.get_text() for label in recall.get_xticklabels()] == ["recall\nL = 256"]
    assert any(np.allclose(line, [[0, 83]]) for line in lines_of(recall))
    points = recall.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], [81, 83, 85])


def test_accuracy_by_distance_steps_down_at_the_reach():
    result = make_result()
    task = result["tasks"][1]
    for found, hits in zip(task["cells"], ([4, 1, 1], [4, 4, 3]), strict=True):
        for run in found["runs"]:
            run["by_distance"] = {"hits": hits, "count": [4, 4, 4], "width": 4}
    (axes,) = draw_distances(result).axes
    assert axes.get_title(loc="left") == "cue, L = 256"
    lines = lines_of(axes)
    middles = [1.5, 5.5, 9.5]
    assert any(np.allclose(line, np.column_stack((middles, [100, 25, 25]))) for line in lines[1:3])
    assert any(np.allclose(line, np.column_stack((middles, [100, 100, 75]))) for line in lines[1:3])
    assert lines[3][:, 0] == pytest.approx([6.5, 6.5])  # the reach of the convolution


def test_groups_of_distances_without_answers_are_left_out():
    result = make_result()
    for found in result["tasks"][1]["cells"]:
        for run in found["runs"]:
            run["by_distance"] = {"hits": [0, 2, 1], "count": [0, 2, 2], "width": 1}
    (axes,) = draw_distances(result).axes
    np.testing.assert_allclose(lines_of(axes)[1], [[1, 100], [2, 50]])


def test_depths_show_accuracy_and_cost_beside_those_of_the_ssm():
    result = make_result()
    result["settings"]["depth_study"] = ["cue_long", [2, 3]]
    result["depths"] = [
        cell("conv", (0.3, 0.3, 0.3), depth=2, reach=6),
        cell("conv", (0.9, 0.9, 0.9), depth=3, reach=9),
        cell("conv+ssm bidirectional", (0.97, 0.99, 0.98)),
    ]
    accuracy, macs, milliseconds = draw_depths(result).axes
    np.testing.assert_allclose(lines_of(accuracy)[0], [[2, 30], [3, 90]])
    np.testing.assert_allclose(lines_of(accuracy)[1][:, 1], [98, 98])
    np.testing.assert_allclose(lines_of(macs)[0][:, 1], [1.234567, 1.234567])
    np.testing.assert_allclose(lines_of(milliseconds)[0][:, 1], [7.25, 7.25])
    assert lines_of(accuracy)[2][0, 0] == 3  # the first that reaches half a side


def test_only_what_the_result_has_is_drawn(tmp_path):
    assert [path.name for path in draw_all(make_result(), tmp_path / "grid")] == ["grid.png"]
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    assert draw_all(make_result() | {"tasks": []}, tmp_path / "empty") == []
