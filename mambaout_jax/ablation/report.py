# SPDX-License-Identifier: Apache-2.0
"""What the grid found, as a table in Markdown and as a figure, beside what the paper expects."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure

# By (long, autoregressive): does the SSM help? The paper's Hypothesis 1 is about short tasks of
# understanding, its Hypothesis 2 about long ones, whose answer it leaves open; the rest follows
# from its Section 3: an SSM suits tasks with both characteristics.
_EXPECTED = {
    (False, False): False,
    (False, True): False,
    (True, False): None,
    (True, True): True,
}
_WORDS = {True: "helps", False: "does not help", None: "may help"}
_MATTERS = 0.05  # of accuracy; test sets of a few hundred examples show no smaller gain
_PALE = 0.45  # opacity of bars
_BASELINE, _FORWARD, _BOTH_WAYS = "conv", "conv+ssm causal", "conv+ssm bidirectional"


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def gain(task: Mapping[str, Any]) -> tuple[float, float]:
    """Accuracy that the SSM adds to the gated convolution, and its standard error.

    The SSM runs both ways in understanding tasks, as in vision models, and forwards in others.
    """
    (base, base_error), (other, other_error) = _compared(task)
    return other - base, math.hypot(base_error, other_error)


def _compared(task: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Accuracy and its error, without the SSM and with it."""
    runs = {cell["mixer"]: cell["runs"] for cell in task["cells"] if "runs" in cell}
    contender = _FORWARD if task["autoregressive"] else _BOTH_WAYS
    return [
        mean_and_error([run["accuracy"] for run in runs[name]]) for name in (_BASELINE, contender)
    ]


def verdict(task: Mapping[str, Any]) -> str:
    """Expectation of the paper and finding of the grid, in words.

    The SSM helps where its gain is more than two standard errors and 5 points, and does not where
    the gain and two standard errors are less than that. Between them the seeds are too few. There
    is no finding with a single seed, nor where neither is 5 points above chance: the budget is too
    small.
    """
    expected = _EXPECTED[task["long"], task["autoregressive"]]
    added, error = gain(task)
    best = max(accuracy for accuracy, _ in _compared(task))
    if best < task["chance"] + _MATTERS:
        found = "neither learned it: no finding"
    elif math.isnan(error):
        found = "one seed: no finding"
    elif added > max(2 * error, _MATTERS):
        found = _found(True, expected)
    elif added + 2 * error < _MATTERS:
        found = _found(False, expected)
    else:
        found = "found: undecided, more seeds are needed"
    return f"expected: {_WORDS[expected]}; {found}"


def _found(helps: bool, expected: bool | None) -> str:
    agrees = {None: "open", helps: "agrees", not helps: "disagrees"}[expected]
    return f"found: {_WORDS[helps]} ({agrees})"


def as_markdown(result: Mapping[str, Any]) -> str:
    """Accuracies, what they say of the hypothesis, and costs, as three tables."""
    mixers = [cell["mixer"] for cell in result["tasks"][0]["cells"]]
    lines = [
        f"# Token mixers by task: preset {result['preset']}",
        "",
        _conditions(result),
        "",
        "Accuracy on the test set in %, mean over seeds ± standard error, after the last update; "
        "no point was chosen by it.",
        "",
        *_table(
            ("task", "L", "L / 6D", "kind", "updates", "chance", *mixers),
            [_accuracies(task) for task in result["tasks"]],
        ),
        "",
        "Does the SSM help? Gain in points over the gated convolution, of the SSM that runs both "
        "ways in understanding tasks and forwards in autoregressive ones.",
        "",
        *_table(
            ("task", "gain", "paper and grid"),
            [
                (task["name"], _percent(*gain(task), signed=True), verdict(task))
                for task in result["tasks"]
            ],
        ),
        "",
        "Costs. Bits are the cross-entropy on the test set per answer.",
        "",
        *_table(
            (
                "task", "mixer", "gate", "parameters", "MACs (M)", "update (ms)", "compiling (s)",
                "bits",
            ),
            [row for task in result["tasks"] for row in _costs(task)],
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path | str) -> None:
    """Draws the accuracies: a panel for each kind of task, a dot per seed, a bar at the mean.

    Args:
        result: what `grid.run_grid` yields.
        path: the PNG file to write.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = new_figure(1240, 860, layout="constrained")
    mixers = [cell["mixer"] for cell in result["tasks"][0]["cells"]]
    colors = dict(zip(mixers, COLORS, strict=False))
    kinds = ((False, False), (True, False), (False, True), (True, True))
    for place, (is_long, autoregressive) in enumerate(kinds, start=1):
        tasks = [
            task
            for task in result["tasks"]
            if (task["long"], task["autoregressive"]) == (is_long, autoregressive)
        ]
        axes = figure.add_subplot(2, 2, place)
        expected = _WORDS[_EXPECTED[is_long, autoregressive]]
        axes.set_title(
            f"{_kind(is_long, autoregressive)} (paper: the SSM {expected})",
            loc="left", fontsize=10, color=INK,
        )  # fmt: skip
        _draw_tasks(axes, tasks, colors)
    handles: list[Any] = [Patch(color=color, alpha=_PALE) for color in colors.values()]
    handles.append(Line2D([], [], color=INK, linestyle=":"))
    labels = (*mixers, "most frequent answer")
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_tasks(axes: Any, tasks: list[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    for position, task in enumerate(tasks):
        for number, cell in enumerate(task["cells"]):
            x = position + 0.16 * (number - 2)
            if "runs" not in cell:
                axes.text(x, 2, "sees the answer", rotation=90, ha="center", fontsize=7, color=INK)
                continue
            points = [100 * run["accuracy"] for run in cell["runs"]]
            color = colors[cell["mixer"]]
            axes.bar(x, statistics.fmean(points), 0.14, color=color, alpha=_PALE)
            axes.scatter([x] * len(points), points, s=14, color=color, zorder=3)
        chance = 100 * task["chance"]
        axes.hlines(chance, position - 0.42, position + 0.42, color=INK, linestyles=":")
    axes.set_xticks(
        range(len(tasks)), [f"{t['name']}\nL = {t['length']}" for t in tasks], fontsize=8
    )
    axes.set_xlim(-0.6, max(len(tasks), 1) - 0.4)
    axes.set_ylim(0, 104)
    axes.set_ylabel("test accuracy (%)", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _conditions(result: Mapping[str, Any]) -> str:
    settings, machine = result["settings"], result["environment"]
    return (
        f"D = {settings['width']}, {settings['depth']} blocks, N = {settings['state_size']}, "
        f"{settings['heads']} heads, kernel side {settings['kernel_size']}; batch "
        f"{settings['batch_size']}, AdamW, learning rate {settings['learning_rate']:g} and "
        f"{len(settings['seeds'])} seeds for all mixers; the gate is widened until all have equal "
        f"MACs. {machine['device']} ({machine['cpu_count']} CPUs), jax {machine['jax']}, "
        f"{result['seconds'] / 60:.0f} min."
        + (f" Not run: {', '.join(result['missing'])}." if result["missing"] else "")
    )


def _accuracies(task: Mapping[str, Any]) -> tuple[str, ...]:
    found = [
        _percent(*mean_and_error([run["accuracy"] for run in cell["runs"]]))
        if "runs" in cell
        else "sees the answer"
        for cell in task["cells"]
    ]
    kind = _kind(task["long"], task["autoregressive"])
    chance = f"{100 * task['chance']:.1f}"
    length = (str(task["length"]), f"{task['length_ratio']:.2f}")
    return (task["name"], *length, kind, str(task["steps"]), chance, *found)


def _costs(task: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            task["name"],
            cell["mixer"],
            str(cell["hidden"]),
            f"{cell['parameters']:,}",
            f"{cell['macs'] / 1e6:.3f}",
            f"{cell['step_milliseconds']['median']:.1f}",
            f"{cell['compile_seconds']:.1f}",
            f"{statistics.fmean(run['bits'] for run in cell['runs']):.3f}",
        )
        for cell in task["cells"]
        if "runs" in cell
    ]


def _kind(is_long: bool, autoregressive: bool) -> str:
    length = "long" if is_long else "short"
    return f"{length}, {'autoregressive' if autoregressive else 'understanding'}"


def _percent(mean: float, error: float, *, signed: bool = False) -> str:
    shown = f"{100 * mean:{'+' if signed else ''}.1f}"
    return shown if math.isnan(error) else f"{shown} ± {100 * error:.1f}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = (header, ("---",) * len(header), *rows)
    return [f"| {' | '.join(line)} |" for line in lines]
