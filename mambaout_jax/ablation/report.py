# SPDX-License-Identifier: Apache-2.0
"""What the grid found, as tables in Markdown, beside what the paper expects."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mambaout_jax.ablation.findings import table
from mambaout_jax.ablation.model import BASELINE
from mambaout_jax.ablation.statistics import Paired, holm, mean_and_error, paired

# By (long, autoregressive): does the SSM help? The paper's Hypothesis 1 is about short tasks of
# understanding, its Hypothesis 2 about long ones, whose answer it leaves open; the rest follows
# from its Section 3: an SSM suits tasks with both characteristics.
EXPECTED = {
    (False, False): False,
    (False, True): False,
    (True, False): None,
    (True, True): True,
}
WORDS = {True: "helps", False: "does not help", None: "may help"}
_FORWARD, _BOTH_WAYS = "conv+ssm causal", "conv+ssm bidirectional"
_CONVOLUTIONS = ("conv", "conv deep", "conv dilated", "conv pyramid")
_MATTERS = 0.05  # of accuracy; test sets of a few hundred examples show no smaller gain
_LEVEL = 0.05  # of significance, for all comparisons of a table together


class Gain(NamedTuple):
    """What the SSM adds to a convolution in a task.

    Attributes:
        task: name of the form.
        baseline: the convolution.
        contender: the mixer with the SSM.
        paired: of their accuracies, seed by seed.
        p_value: corrected for the number of comparisons (Holm).
        found: whether it helps; None: undecided or not to be decided.
        verdict: expectation of the paper and finding, in words.
    """

    task: str
    baseline: str
    contender: str
    paired: Paired
    p_value: float
    found: bool | None
    verdict: str


def contender_of(task: Mapping[str, Any]) -> str:
    """The SSM runs both ways where all is visible, as in vision models, and forwards elsewhere."""
    return _FORWARD if task["autoregressive"] else _BOTH_WAYS


def accuracies(task: Mapping[str, Any]) -> dict[str, list[float]]:
    """On the test split, by mixer that was run and by seed."""
    return {
        cell["mixer"]: [run["accuracy"] for run in cell["runs"]]
        for cell in task["cells"]
        if "runs" in cell
    }


def learned_by(task: Mapping[str, Any]) -> list[str]:
    """Mixers whose mean accuracy reaches what counts as learned."""
    return [
        mixer
        for mixer, values in accuracies(task).items()
        if statistics.fmean(values) >= task["learned"]
    ]


def gains(tasks: Sequence[Mapping[str, Any]], *, sceptical: bool = False) -> list[Gain]:
    """What the SSM adds, task by task, where both were run.

    Args:
        tasks: of the result.
        sceptical: compare with the best of all convolutions of equal MACs, by the mean on the
            validation split, instead of the plain one.
    """
    pairs = []
    for task in tasks:
        found, contender = accuracies(task), contender_of(task)
        baseline = _best_convolution(task) if sceptical else BASELINE
        if contender in found and baseline in found:
            pairs.append((task, baseline, contender, paired(found[contender], found[baseline])))
    corrected = holm([pair[-1].p_value for pair in pairs])
    return [
        Gain(task["name"], baseline, contender, difference, p, *_judge(task, difference, p))
        for (task, baseline, contender, difference), p in zip(pairs, corrected, strict=True)
    ]


def _best_convolution(task: Mapping[str, Any]) -> str | None:
    runs = {cell["mixer"]: cell["runs"] for cell in task["cells"] if "runs" in cell}
    ran = [mixer for mixer in _CONVOLUTIONS if mixer in runs]
    return max(ran, key=lambda m: statistics.fmean(r["validation"] for r in runs[m]), default=None)


def _judge(task: Mapping[str, Any], difference: Paired, p_value: float) -> tuple[bool | None, str]:
    """Whether the SSM helps, and the words for it.

    It helps where the gain is sure, at a level of 5 % for all comparisons of the table together,
    and more than 5 points; it does not where the interval ends below that. Between them the seeds
    are too few. Nothing is found with a single seed, nor where no mixer at all learned the task.
    """
    expected = EXPECTED[task["long"], task["autoregressive"]]
    seeds = max((len(values) for values in accuracies(task).values()), default=0)
    gain = difference.difference
    same_everywhere = math.isnan(difference.low)  # no spread over the seeds
    sure = same_everywhere or p_value < _LEVEL
    high = gain if same_everywhere else difference.high
    found = None
    if not learned_by(task):
        words = "no mixer learned it: no finding"
    elif seeds < 2:
        words = "one seed: no finding"
    elif sure and gain > _MATTERS:
        found, words = True, _words(True, expected)
    elif high < _MATTERS:
        found, words = False, _words(False, expected)
    else:
        words = "found: undecided, more seeds are needed"
    return found, f"expected: {WORDS[expected]}; {words}"


def _words(helps: bool, expected: bool | None) -> str:
    agrees = {None: "open", helps: "agrees", not helps: "disagrees"}[expected]
    return f"found: {WORDS[helps]} ({agrees})"


def as_markdown(result: Mapping[str, Any]) -> str:
    """All tables: accuracies, what the SSM adds, the study of depths, costs."""
    tasks = result["tasks"]
    parts = [
        f"# Token mixers by task: preset {result['preset']}",
        _conditions(result),
        "Accuracy on the test split in %, mean over seeds ± standard error, after the last update; "
        "no point was chosen by it. On maps with a distance it counts the answers that lie at "
        "least half a side away. Bold: learned. A task that no mixer learned tells nothing.",
        _table(*_accuracy_table(result)),
        "Does the SSM help? Gain in points over the gated convolution of equal MACs, of the SSM "
        "that runs both ways on maps and forwards in sequences: mean over seeds, 95 % interval of "
        "the paired differences, p of the paired t test corrected for all rows (Holm).",
        _table(*_gain_table(gains(tasks))),
    ]
    if any(len(set(_CONVOLUTIONS) & set(accuracies(task))) > 1 for task in tasks):
        parts += [
            "And against the best convolution that a sceptic would take at the same MACs: deeper "
            "and narrower, dilated, or a pyramid; chosen on the validation split.",
            _table(*_gain_table(gains(tasks, sceptical=True))),
        ]
    if result["depths"]:
        parts += [_depth_words(result), _table(*_depth_table(result))]
    parts += [
        "Costs. The gate is what makes MACs equal. Reach: tokens that the convolutions see to "
        "each side, or backwards in a sequence. Bits are the cross-entropy on the test split per "
        "answer.",
        _table(*_cost_table(tasks)),
    ]
    return "\n\n".join(parts) + "\n"


def _conditions(result: Mapping[str, Any]) -> str:
    settings, machine = result["settings"], result["environment"]
    rates = ", ".join(f"{rate:g}" for rate in settings["learning_rates"])
    chosen = (
        f"learning rate {rates} for all mixers"
        if len(settings["learning_rates"]) == 1
        else f"the learning rate of each mixer and task chosen among {rates} on a validation split"
    )
    missing = f" Still to come: {result['missing']} cells." if result["missing"] else ""
    return (
        f"D = {settings['width']}, {settings['depth']} blocks, N = {settings['state_size']}, "
        f"{settings['heads']} heads, kernel side {settings['kernel_size']}; batch "
        f"{settings['batch_size']}, AdamW, {chosen}, {len(settings['seeds'])} seeds. "
        f"{machine['device']} ({machine['cpu_count']} CPUs), jax {machine['jax']}, "
        f"{result['seconds'] / 60:.0f} min.{missing}"
    )


def _accuracy_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    mixers = result["settings"]["mixers"]
    rows = []
    for task in result["tasks"]:
        found, learned = accuracies(task), learned_by(task)
        cells = []
        for mixer in mixers:
            shown = _percent(*mean_and_error(found[mixer])) if mixer in found else "–"
            cells.append(f"**{shown}**" if mixer in learned else shown)
        rows.append(
            (
                task["name"],
                str(task["length"]),
                f"{task['length_ratio']:.2f}",
                kind(task["long"], task["autoregressive"]),
                f"{100 * task['chance']:.1f}",
                f"{100 * task['learned']:.0f}",
                *cells,
            )
        )
    return ("task", "L", "L / 6D", "kind", "chance", "learned from", *mixers), rows


def _gain_table(found: Sequence[Gain]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (
            gain.task,
            f"{gain.contender} − {gain.baseline}",
            f"{100 * gain.paired.difference:+.1f}",
            _interval(gain.paired),
            "–" if math.isnan(gain.p_value) else f"{gain.p_value:.2g}",
            gain.verdict,
        )
        for gain in found
    ]
    return ("task", "difference", "gain", "95 % interval", "p", "paper and grid"), rows


def _depth_words(result: Mapping[str, Any]) -> str:
    plan = result["settings"]["depth_study"][0]
    return (
        f"How deep must the convolution be? {plan}, {result['settings']['width']} channels at "
        "every depth, MACs not matched."
    )


def _depth_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (
            f"{cell['mixer']}, {cell['depth']} block{'s' if cell['depth'] > 1 else ''}",
            "all" if cell["reach"] is None else str(cell["reach"]),
            f"{cell['macs'] / 1e6:.3f}",
            _milliseconds(cell),
            _percent(*mean_and_error([run["accuracy"] for run in cell["runs"]])),
        )
        for cell in result["depths"]
    ]
    return ("model", "reach", "MACs (M)", "update (ms)", "accuracy"), rows


def _cost_table(
    tasks: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (
            task["name"],
            cell["mixer"],
            str(cell["width"]),
            str(cell["depth"]),
            str(cell["hidden"]),
            "all" if cell["reach"] is None else str(cell["reach"]),
            f"{cell['parameters']:,}",
            f"{cell['macs'] / 1e6:.3f}",
            _milliseconds(cell),
            f"{cell['learning_rate']:g}",
            f"{statistics.fmean(run['bits'] for run in cell['runs']):.3f}",
        )
        for task in tasks
        for cell in task["cells"]
        if "runs" in cell
    ]
    header = (
        "task", "mixer", "D", "blocks", "gate", "reach", "parameters", "MACs (M)", "update (ms)",
        "rate", "bits",
    )  # fmt: skip
    return header, rows


def kind(is_long: bool, autoregressive: bool) -> str:
    """Of a task, in words."""
    length = "long" if is_long else "short"
    return f"{length}, {'autoregressive' if autoregressive else 'fully visible'}"


def _milliseconds(cell: Mapping[str, Any]) -> str:
    times = cell.get("step_milliseconds")
    return "–" if times is None else f"{times['median']:.1f}"


def _interval(difference: Paired) -> str:
    if math.isnan(difference.low):
        return "–"
    return f"{100 * difference.low:+.1f} … {100 * difference.high:+.1f}"


def _percent(mean: float, error: float) -> str:
    shown = f"{100 * mean:.1f}"
    return shown if math.isnan(error) else f"{shown} ± {100 * error:.1f}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(table(header, rows))
