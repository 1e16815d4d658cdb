# SPDX-License-Identifier: Apache-2.0
"""What a comparison of token mixers has found: differences with their intervals, a table, words."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout_jax.ablation.gates import TOLERANCE, Contender
from mambaout_jax.ablation.statistics import Paired, holm, paired
from mambaout_jax.tasks.task import Score

CONFIDENCE = 0.95
_LEVEL = 1 - CONFIDENCE  # a corrected p value below it is called a difference
_INTERVAL = f"{100 * CONFIDENCE:g} % interval"


def compared(
    mixers: Sequence[Mapping[str, Any]], metric: str, score: Score
) -> list[dict[str, Any]]:
    """Every mixer but the first against the first, seed by seed.

    Args:
        mixers: with `mixer`, its name, and `runs`, with `metrics`, in one order of seeds.
        metric: the compared one.
        score: what it means.

    Returns:
        For each the names `mixer` and `minus`, the mean `difference`, its `interval` and
        `p_value`, the p value corrected for all of them, `p_value_holm` (None where there is no
        interval), and the `verdict`, a sentence.
    """
    values = [[run["metrics"][metric] for run in mixer["runs"]] for mixer in mixers]
    names = [mixer["mixer"] for mixer in mixers]
    found = [paired(theirs, values[0], CONFIDENCE) for theirs in values[1:]]
    corrected = holm([pair.p_value for pair in found])
    rows = []
    for name, pair, p_value in zip(names[1:], found, corrected, strict=True):
        estimated = not math.isnan(p_value)
        rows.append(
            {
                "mixer": name,
                "minus": names[0],
                "difference": pair.difference,
                "interval": [pair.low, pair.high] if estimated else None,
                "p_value": pair.p_value if estimated else None,
                "p_value_holm": p_value if estimated else None,
                "verdict": f"{name} minus {names[0]}: {_amount(pair.difference, score)} of "
                f"{metric}, {_verdict(name, pair, p_value, score, len(values[0]), len(found))}",
            }
        )
    return rows


def _verdict(
    name: str, pair: Paired, p_value: float, score: Score, seeds: int, comparisons: int
) -> str:
    if seeds == 1:
        return "1 seed: no interval, so no difference is shown; take more --seeds"
    if math.isnan(p_value):
        return f"alike in all {seeds} seeds: no interval, so no difference is shown"
    low, high = (_number(bound, score) for bound in (pair.low, pair.high))
    interval = f"{_INTERVAL} [{low}, {high}], {seeds} seeds"
    if p_value < _LEVEL:
        better = (pair.difference > 0) == score.higher_is_better
        return f"{interval}: {name} is {'better' if better else 'worse'}"
    if pair.p_value < _LEVEL:
        return f"{interval}: no difference shown, corrected for {comparisons} comparisons"
    return f"{interval}: no difference shown"


def as_markdown(result: Mapping[str, Any]) -> str:
    """A table of the mixers, one of their differences, and what these say.

    Args:
        result: as `compare.compare` returns it.
    """
    score = Score(result["metric"], result["unit"], result["higher_is_better"])
    mixers, comparisons = result["mixers"], result["comparisons"]
    lines = [
        f"# Token mixers on {result['config']}",
        "",
        _conditions(result),
        "",
        *table(
            ("mixer", "gate", "parameters", "MACs", "images/s", score.name),
            [_row(mixer, score) for mixer in mixers],
        ),
        "",
        f"{score.name} is the mean over seeds ± its standard error, after the last update; no "
        f"update was chosen by it. {'Higher' if score.higher_is_better else 'Lower'} is better.",
        "",
        *table(
            (f"minus {mixers[0]['mixer']}", "difference", _INTERVAL, "p", "p (Holm)"),
            [_difference(row, score) for row in comparisons],
        ),
        "",
        "Student's t on the differences between runs of equal seeds; Holm's p values are corrected "
        f"for {_counted(len(comparisons), 'comparison')}.",
        "",
        *(f"- {row['verdict']}" for row in comparisons),
        "",
    ]
    return "\n".join(lines)


def as_plan(contenders: Sequence[Contender], seeds: int, updates: int, out: Path) -> str:
    """What will be trained, before it is.

    Args:
        seeds: how many.
        updates: of a run.
        out: the folder of the comparison.
    """
    rows = [
        _costs(x.mixer.name, x.expansion_ratio, x.cost.parameters, x.cost.macs) for x in contenders
    ]
    runs = _counted(len(contenders) * seeds, "run")
    return "\n".join(
        [
            *table(("mixer", "gate", "parameters", "MACs"), rows),
            f"{runs} ({len(contenders)} mixers x {_counted(seeds, 'seed')}) of "
            f"{_counted(updates, 'update')}, into {out}",
        ]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, in columns that are as wide as their texts."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in (header, ["-" * width for width in widths], *rows)
    ]
    return [f"| {line} |" for line in lines]


def _costs(name: str, ratio: float, parameters: int, macs: int) -> tuple[str, str, str, str]:
    """Cells: the width of the gate is given over that of the block."""
    return name, f"{ratio:.3f}", f"{parameters:,}", f"{macs:,}"


def _conditions(result: Mapping[str, Any]) -> str:
    settings, machine, seeds = result["settings"], result["environment"], result["seeds"]
    data, side = settings["data"], settings["data"]["image_size"]
    gates = (
        f"The gates are as wide as it takes for equal MACs, within {100 * TOLERANCE:g} %."
        if result["equal"] == "macs"
        else "The gates are as wide as in the config, so that MACs differ."
    )
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return (
        f"{settings['model']['name']} on {data['source']} at {side} x {side} pixels, "
        f"{_counted(result['updates'], 'update')} of {settings['batch_size']} images, {which}. "
        f"{gates} {machine['device_count']} x {machine['device']}, jax {machine['jax']}."
    )


def _difference(row: Mapping[str, Any], score: Score) -> tuple[str, ...]:
    difference = _amount(row["difference"], score)
    if row["interval"] is None:
        return row["mixer"], difference, "–", "–", "–"
    interval = "[{}, {}]".format(*(_number(bound, score) for bound in row["interval"]))
    return row["mixer"], difference, interval, _p(row["p_value"]), _p(row["p_value_holm"])


def _row(mixer: Mapping[str, Any], score: Score) -> tuple[str, ...]:
    speed, error = mixer["images_per_second"], mixer["error"]
    return (
        *_costs(*(mixer[key] for key in ("mixer", "expansion_ratio", "parameters", "macs"))),
        "–" if speed is None else f"{speed:,.0f}",
        _number(mixer["mean"], score) + ("" if error is None else f" ± {_number(error, score)}"),
    )


def _amount(value: float, score: Score) -> str:
    """A difference with its sign and unit."""
    return f"{_number(value, score, '+')} {score.unit}".rstrip()


def _number(value: float, score: Score, sign: str = "") -> str:
    """Points with two places, what has no unit with four; never -0."""
    return f"{value:{sign}z.{2 if score.unit else 4}f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
