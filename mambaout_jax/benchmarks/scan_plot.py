# SPDX-License-Identifier: Apache-2.0
"""The figure of the scan benchmark: time per token in each mixer, against the length."""

from pathlib import Path
from typing import Any

from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure

# Colour and line style of each mixer; both attentions have the same colour.
_STYLES = {
    "conv": (COLORS[2], "-"),
    "sequential": (COLORS[5], "-"),
    "associative": (COLORS[4], "-"),
    "chunked": (COLORS[1], "-"),
    "pallas": (COLORS[3], "-"),
    "attention": (COLORS[0], "-"),
    "causal_attention": (COLORS[0], "--"),
}
_GRID = "#D9D9D9"
_TEXT_SIZE = 7.5  # points
_PANEL = (560, 400)  # pixels
_APART = 1.6  # ratio of two lengths whose labels fit side by side
_TOP = 1.0  # height of the first mixer's crosses, in units of the axes
_STEP = 0.025  # how much lower those of the next mixer are


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Draws a row of two panels, forward and forward+backward, for each width, as a PNG file.

    Lines are medians in microseconds per token, on logarithmic axes, with a band from the fastest
    to the slowest round. Crosses at the top, one row per mixer, mark lengths that were too large,
    too slow or failed. The dotted line is at L = 6D, beyond which the paper calls a sequence long
    (Eq. 6).

    Args:
        result: the result of `scan.run`.
        path: the PNG file to write.
    """
    save_figure(_figure(result), path)


def _figure(result: dict[str, Any]) -> Any:
    rows = result["rows"]
    widths = list(dict.fromkeys(row["width"] for row in rows))
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    columns = len(passes)
    height = _PANEL[1] * len(widths)
    figure = new_figure(_PANEL[0] * columns, height + 60, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(len(widths), columns, squeeze=False, sharey="row")
    for line, width in zip(panels, widths, strict=True):
        for axes, name in zip(line, passes, strict=True):
            _style(axes, f"D = {width}, {name}")
            _draw_panel(axes, [r for r in rows if (r["width"], r["pass"]) == (width, name)])
            _mark_threshold(axes, width)
        line[0].set_ylabel("µs per token", fontsize=_TEXT_SIZE, color=INK)
    _add_legend(figure, rows)
    return figure


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("L, tokens of a sequence", fontsize=_TEXT_SIZE, color=INK)
    axes.tick_params(which="both", labelsize=_TEXT_SIZE, color=_GRID, labelcolor=INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)


def _draw_panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    for number, mixer in enumerate(dict.fromkeys(row["mixer"] for row in rows)):
        color, line = _STYLES[mixer]
        measured = [r for r in rows if r["mixer"] == mixer and r["status"] == "measured"]
        missing = [r["length"] for r in rows if r["mixer"] == mixer and r["status"] != "measured"]
        lengths = [row["length"] for row in measured]
        tokens = [row["batch"] * row["length"] for row in measured]
        low, middle, high = (
            [1e3 * row[key] / count for row, count in zip(measured, tokens, strict=True)]
            for key in ("min_ms", "median_ms", "max_ms")
        )
        axes.plot(
            lengths, middle, color=color, linestyle=line, marker="o", markersize=3.5, linewidth=1.5
        )
        axes.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
        height = _TOP - _STEP * number
        axes.plot(
            missing,
            [height] * len(missing),
            color=color,
            marker="x",
            markersize=4.5,
            linestyle="none",
            clip_on=False,
            in_layout=False,
            transform=axes.get_xaxis_transform(),
        )
    ticks = []
    for length in sorted({row["length"] for row in rows}):
        if not ticks or length >= _APART * ticks[-1]:
            ticks.append(length)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _mark_threshold(axes: Any, width: int) -> None:
    length = 6 * width
    axes.axvline(length, color=INK, linestyle=":", linewidth=1.5)
    axes.annotate(
        f"L = 6D = {length:,}",
        (length, 0),
        (4, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=_TEXT_SIZE,
        color=INK,
    )


def _add_legend(figure: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    handles = []
    for mixer in mixers:
        color, line = _STYLES[mixer]
        style: Any = line
        handles.append(Line2D([], [], color=color, linestyle=style, linewidth=2))
    labels = [mixer.replace("_", " ") for mixer in mixers]
    handles.append(Line2D([], [], color=INK, marker="x", markersize=5, linestyle="none"))
    labels.append("not measured")
    figure.legend(
        handles=handles,
        labels=labels,
        loc="outside upper left",
        ncols=len(handles),
        frameon=False,
        fontsize=_TEXT_SIZE,
        labelcolor=INK,
    )
