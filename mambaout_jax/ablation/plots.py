# SPDX-License-Identifier: Apache-2.0
"""The figures of the grid: gains of the SSM, accuracy by distance, accuracy and cost by depth."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.report import (
    EXPECTED,
    WORDS,
    accuracies,
    gains,
    kind,
)
from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure

_GRID = "#D9D9D9"
_TEXT = 8  # points
_MOST = 105  # points of gain; intervals of few seeds may be wider, and are cut off
_LINES: dict[str, Any] = {"conv": "-", "conv+ssm": "-", "ssm": ":", "attention": "--"}
_COLORS = {
    "conv": COLORS[0],
    "conv deep": COLORS[5],
    "conv dilated": COLORS[2],
    "conv pyramid": "#7A7A7A",
    "conv+ssm causal": COLORS[4],
    "conv+ssm bidirectional": COLORS[1],
    "conv+ssm cross": "#8C3A00",
    "ssm": COLORS[1],
    "attention causal": "#B07AA1",
    "attention full": COLORS[3],
}


def draw_all(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Draws what the result allows.

    Args:
        result: what `grid.run_grid` yields.
        path: without suffix; figures are `<path>.png`, `<path>_distance.png`, `<path>_depth.png`.

    Returns:
        The files written.
    """
    figures = {
        ".png": draw_gains(result),
        "_distance.png": draw_distances(result),
        "_depth.png": draw_depths(result),
    }
    written = []
    for ending, figure in figures.items():
        if figure is not None:
            file = path.with_name(path.name + ending)
            save_figure(figure, file)
            written.append(file)
    return written


def draw_gains(result: Mapping[str, Any]) -> Any:
    """A panel for each kind of task: what the SSM adds, seed by seed, with its 95 % interval."""
    tasks = {task["name"]: task for task in result["tasks"]}
    found = gains(result["tasks"])
    if not found:
        return None
    figure = new_figure(1240, 820, layout="constrained")
    panels = figure.subplots(2, 2, squeeze=False, sharey=True)
    for axes, key in zip(panels.flat, EXPECTED, strict=True):
        own = [g for g in found if (tasks[g.task]["long"], tasks[g.task]["autoregressive"]) == key]
        _style(axes, f"{kind(*key)} (paper: the SSM {WORDS[EXPECTED[key]]})")
        axes.axhline(0, color=INK, linewidth=0.8)
        for x, gain in enumerate(own):
            values = accuracies(tasks[gain.task])
            pairs = zip(values[gain.contender], values[gain.baseline], strict=True)
            points = [100 * (with_it - without) for with_it, without in pairs]
            color = {True: COLORS[2], False: COLORS[0], None: "#7A7A7A"}[gain.found]
            axes.scatter([x] * len(points), points, s=14, color=color, alpha=0.5, linewidths=0)
            mean, low, high = (100 * value for value in gain.paired[:3])
            if not math.isnan(low):
                axes.errorbar(x, mean, [[mean - low], [high - mean]], color=color, capsize=4)
            axes.plot(x, mean, marker="D", color=color, markersize=6)
        labels = [f"{g.task.rsplit('_', 1)[0]}\nL = {tasks[g.task]['length']}" for g in own]
        axes.set_xticks(range(len(own)), labels, fontsize=_TEXT)
        axes.set_xlim(-0.6, max(len(own), 1) - 0.4)
        axes.set_ylim(-_MOST, _MOST)
    for line in panels:
        line[0].set_ylabel("gain over the convolution (points)", fontsize=_TEXT, color=INK)
    handles = [_handle(color, marker="D") for color in (COLORS[2], COLORS[0], "#7A7A7A")]
    labels = ["helps", "does not help", "undecided, or learned by no mixer"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def draw_distances(result: Mapping[str, Any]) -> Any:
    """A panel for each long map: accuracy against the distance between question and answer."""
    tasks = [t for t in result["tasks"] if t["long"] and t["far"] and _distances(t)]
    if not tasks:
        return None
    figure = new_figure(480 * len(tasks) + 60, 480, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    shown: dict[str, str] = {}
    for axes, task in zip(panels, tasks, strict=True):
        _style(axes, f"{task['name'].rsplit('_', 1)[0]}, L = {task['length']}")
        axes.axhline(100 * task["chance"], color=INK, linestyle=":", linewidth=1)
        for cell, (distances, values) in _distances(task).items():
            mixer = task["cells"][cell]["mixer"]
            shown[mixer] = _COLORS[mixer]
            style = _LINES[MIXERS[mixer].token_mixer]
            axes.plot(distances, values, color=_COLORS[mixer], linestyle=style, linewidth=1.6)
        reach = next((c["reach"] for c in task["cells"] if c["mixer"] == "conv"), None)
        if reach is not None:
            axes.axvline(reach + 0.5, color=_COLORS["conv"], linestyle="--", linewidth=1)
            axes.annotate(
                "reach of conv", (reach + 0.5, 2), (4, 0), textcoords="offset points",
                fontsize=_TEXT, color=_COLORS["conv"],
            )  # fmt: skip
        axes.set_xlabel("distance from question to answer (tokens)", fontsize=_TEXT, color=INK)
        axes.set_ylim(0, 103)
    panels[0].set_ylabel("accuracy (%)", fontsize=_TEXT, color=INK)
    handles = [_handle(shown[m], _LINES[MIXERS[m].token_mixer]) for m in MIXERS if m in shown]
    names = [mixer for mixer in MIXERS if mixer in shown]
    figure.legend(handles, names, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def draw_depths(result: Mapping[str, Any]) -> Any:
    """Accuracy of ever deeper convolutions, and their cost, beside those of the SSM."""
    growing = [cell for cell in result["depths"] if cell["reach"] is not None]
    beside = [cell for cell in result["depths"] if cell["reach"] is None]
    if not growing:
        return None
    plan = result["settings"]["depth_study"][0]
    (task,) = (task for task in result["tasks"] if task["name"] == plan)
    covering = next((c["depth"] for c in growing if c["reach"] >= max(1, task["far"])), None)
    figure = new_figure(1240, 420, layout="constrained")
    for axes, (name, measure) in zip(figure.subplots(1, 3), _MEASURES.items(), strict=True):
        _style(axes, name)
        points = [(cell["depth"], value) for cell in growing if (value := measure(cell))]
        if points:
            axes.plot(*zip(*points, strict=True), color=_COLORS["conv"], marker="o", markersize=4)
        for cell in beside:
            if value := measure(cell):
                _mark_level(axes, value, cell)
        if covering is not None:
            axes.axvline(covering, color=INK, linestyle=":", linewidth=1)
        axes.set_xticks([cell["depth"] for cell in growing])
        axes.set_xlabel("blocks of the convolution", fontsize=_TEXT, color=INK)
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    figure.suptitle(
        f"{plan}: convolutions of {result['settings']['width']} channels; dotted: the first whose "
        "reach comes to half a side",
        fontsize=9, color=INK,
    )  # fmt: skip
    return figure


def _milliseconds(cell: Mapping[str, Any]) -> float | None:
    return cell.get("step_milliseconds", {}).get("median")


_MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "accuracy (%)": lambda cell: 100 * statistics.fmean(run["accuracy"] for run in cell["runs"]),
    "MACs (M)": lambda cell: cell["macs"] / 1e6,
    "update (ms)": _milliseconds,
}


def _mark_level(axes: Any, value: float, cell: Mapping[str, Any]) -> None:
    color = _COLORS[cell["mixer"]]
    axes.axhline(value, color=color, linewidth=1.5)
    axes.annotate(
        f"{cell['mixer']}, {cell['depth']} blocks", (0, value), (4, 4),
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=_TEXT, color=color,
    )  # fmt: skip


def _distances(task: Mapping[str, Any]) -> dict[int, tuple[list[float], list[float]]]:
    """By number of the cell: middles of the groups of distances, and accuracy in % over seeds."""
    curves = {}
    for number, cell in enumerate(task["cells"]):
        found = [run["by_distance"] for run in cell.get("runs", ()) if run["by_distance"]]
        if not found:
            continue
        hits, counts = (_summed([run[name] for run in found]) for name in ("hits", "count"))
        middles = [(i + 0.5) * found[0]["width"] - 0.5 for i in range(len(counts))]
        known = [i for i, count in enumerate(counts) if count]
        values = [100 * hits[i] / counts[i] for i in known]
        curves[number] = ([middles[i] for i in known], values)
    return curves


def _summed(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.tick_params(labelsize=_TEXT, labelcolor=INK, color=_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _handle(color: str, style: Any = "-", marker: str = "") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle="none" if marker else style, marker=marker)
