# SPDX-License-Identifier: Apache-2.0
"""Tables and sentences about comparisons, on values made by hand."""

from pathlib import Path

import pytest
import scipy.stats

from mambaout_jax.ablation.findings import as_markdown, as_plan, compared, table
from mambaout_jax.ablation.gates import Contender, Mixer
from mambaout_jax.analysis.cost import Cost
from mambaout_jax.tasks.task import Score

POINTS, LOSS = Score("top1", "points"), Score("loss", higher_is_better=False)


def mixer(name, values, **more):
    runs = [{"seed": i, "metrics": {"eval/top1": value}} for i, value in enumerate(values)]
    return {"mixer": name, "runs": runs, **more}


def verdicts(score, first, **others):
    mixers = [mixer("conv", first), *(mixer(name, values) for name, values in others.items())]
    rows = compared(mixers, "eval/top1", score)
    return [row["verdict"].partition("of eval/top1, ")[2] for row in rows]


def test_differences_are_paired_by_seed_and_corrected_for_their_number():
    conv, ssm, attention = (97.0, 98.0, 99.0), (97.5, 98.25, 99.75), (97.1, 97.9, 99.1)
    rows = compared(
        [mixer("conv", conv), mixer("conv+ssm", ssm), mixer("attention", attention)],
        "eval/top1",
        POINTS,
    )
    one, two = (scipy.stats.ttest_rel(values, conv) for values in (ssm, attention))
    assert [row["mixer"] for row in rows] == ["conv+ssm", "attention"]
    assert {row["minus"] for row in rows} == {"conv"}
    assert rows[0]["difference"] == pytest.approx(0.5)
    assert rows[0]["interval"] == pytest.approx(list(one.confidence_interval()))
    assert [row["p_value"] for row in rows] == pytest.approx([one.pvalue, two.pvalue])
    assert [row["p_value_holm"] for row in rows] == pytest.approx([2 * one.pvalue, two.pvalue])
    assert rows[0]["verdict"] == (
        "conv+ssm minus conv: +0.50 points of eval/top1, 95 % interval [-0.12, 1.12], 3 seeds: no "
        "difference shown"
    )


@pytest.mark.parametrize(
    ("score", "ssm", "words"),
    [
        (POINTS, (1.0, 1.1, 0.9), "95 % interval [0.75, 1.25], 3 seeds: ssm is better"),
        (POINTS, (-1.0, -1.1, -0.9), "95 % interval [-1.25, -0.75], 3 seeds: ssm is worse"),
        (LOSS, (1.0, 1.1, 0.9), "95 % interval [0.7516, 1.2484], 3 seeds: ssm is worse"),
        (LOSS, (-1.0, -1.1, -0.9), "95 % interval [-1.2484, -0.7516], 3 seeds: ssm is better"),
        (POINTS, (1.0, -1.0, 0.5), "95 % interval [-2.42, 2.75], 3 seeds: no difference shown"),
        (POINTS, (1.0,), "1 seed: no interval, so no difference is shown; take more --seeds"),
        (POINTS, (0.0, 0.0), "alike in all 2 seeds: no interval, so no difference is shown"),
    ],
)
def test_a_verdict_says_what_the_interval_allows(score, ssm, words):
    assert verdicts(score, [0.0] * len(ssm), ssm=ssm) == [words]


def test_many_comparisons_show_less():
    lone = {"ssm": (1.0, 1.6, 0.5)}
    noise = {"a": (1.0, -1.0, 0.5), "b": (2.0, -1.0, 0.5)}
    interval = "95 % interval [-0.33, 2.40], 3 seeds: "
    assert verdicts(POINTS, (0.0,) * 3, **lone)[0] == f"{interval}no difference shown"
    lone = {"ssm": (1.0, 1.3, 0.7)}
    interval = "95 % interval [0.25, 1.75], 3 seeds: "
    assert verdicts(POINTS, (0.0,) * 3, **lone)[0] == f"{interval}ssm is better"
    words = f"{interval}no difference shown, corrected for 3 comparisons"
    assert verdicts(POINTS, (0.0,) * 3, **lone, **noise)[0] == words


def result(values, score=POINTS, **more):
    costs = {"expansion_ratio": 8 / 3, "parameters": 991_578, "macs": 1_856_704}
    mixers = []
    for name, (mean, error) in {"conv": (98.8, 0.1), "conv+ssm": (98.9, None)}.items():
        found = {"mean": mean, "error": error, "images_per_second": 1500.4}
        mixers.append(mixer(name, values, **costs, **found))
    mixers[1]["images_per_second"] = None
    return {
        "config": "experiments/quickstart.py",
        "settings": {
            "model": {"name": "mambaout_micro"},
            "data": {"source": "digits", "image_size": 32},
            "batch_size": 64,
        },
        "equal": "macs",
        "updates": 660,
        "metric": "eval/top1",
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "seeds": list(range(len(values))),
        "environment": {"device_count": 1, "device": "cpu", "jax": "0.10.2"},
        "mixers": mixers,
        "comparisons": compared(mixers, "eval/top1", score),
        **more,
    }


def test_markdown_tells_conditions_costs_and_differences():
    text = as_markdown(result((98.5, 99.0)))
    assert text.startswith(
        "# Token mixers on experiments/quickstart.py\n\nmambaout_micro on digits"
    )
    assert (
        "32 x 32 pixels, 660 updates of 64 images, seeds 0 to 1. The gates are as wide as " in text
    )
    assert "for equal MACs, within 1 %. 1 x cpu, jax 0.10.2." in text
    assert "| conv     | 2.667 | 991,578    | 1,856,704 | 1,500    | 98.80 ± 0.10 |" in text
    assert "| conv+ssm | 2.667 | 991,578    | 1,856,704 | –        | 98.90        |" in text
    assert "| conv+ssm   | +0.00 points | –             | – | –        |".replace(" ", "") in (
        text.replace(" ", "")
    )
    assert "Holm's p values are corrected for 1 comparison.\n" in text
    assert "Higher is better." in text
    assert "\n- conv+ssm minus conv: +0.00 points of eval/top1, alike in all 2 seeds:" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(lines) for lines in tables] == [4, 3]
    for lines in tables:
        assert len(set(map(len, lines))) == 1
    text = as_markdown(result((0.5,), LOSS, equal="width"))
    assert "Lower is better." in text
    assert "600 updates" not in text
    assert "seed 0. The gates are as wide as in the config, so that MACs differ." in text


def test_small_p_values_are_not_zero():
    found = result((98.5, 99.0))
    found["comparisons"][0] |= {"interval": [-0.004, 0.9], "p_value": 1e-9, "p_value_holm": 0.0312}
    (line,) = (x for x in as_markdown(found).splitlines() if x.startswith("| conv+ssm   | +"))
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["[0.00, 0.90]", "< 0.001", "0.031"]


def test_plan_counts_the_runs():
    models = [
        Contender(Mixer("conv+ssm", "cross"), None, 8 / 3, Cost(12_345, 2_000_000)),
        Contender(Mixer("conv"), None, 12.0, Cost(2_345, 2_000_100)),
    ]
    assert as_plan(models, 3, 660, Path("runs/x")).splitlines() == [
        "| mixer          | gate   | parameters | MACs      |",
        "| -------------- | ------ | ---------- | --------- |",
        "| conv+ssm:cross | 2.667  | 12,345     | 2,000,000 |",
        "| conv           | 12.000 | 2,345      | 2,000,100 |",
        "6 runs (2 mixers x 3 seeds) of 660 updates, into runs/x",
    ]


def test_columns_are_as_wide_as_their_texts():
    assert table(("a", "bcde"), [("xyzw", "")]) == [
        "| a    | bcde |", "| ---- | ---- |", "| xyzw |      |",
    ]  # fmt: skip
