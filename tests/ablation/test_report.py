# SPDX-License-Identifier: Apache-2.0
"""Tables of the grid, on results made by hand."""

import re

import pytest
from support.grid_results import cell, make_result, make_task

from mambaout_jax.ablation.report import as_markdown, gains, learned_by
from mambaout_jax.ablation.statistics import paired


def tables_of(result):
    """The report without the blanks that align its columns."""
    return re.sub(" +", " ", as_markdown(result))


def only_gain(conv, ssm, **changes):
    found = make_task(
        "recall_long", is_long=True, autoregressive=True,
        accuracies={"conv": conv, "conv+ssm causal": ssm} | changes,
    )  # fmt: skip
    (gain,) = gains([found])
    return gain


def test_gain_is_of_the_ssm_that_the_task_allows():
    result = make_result()
    found = {gain.task: gain for gain in gains(result["tasks"])}
    assert found["digits_short"].contender == "conv+ssm bidirectional"
    assert found["recall_long"].contender == "conv+ssm causal"
    expected = paired([0.91, 0.95, 0.96], [0.1, 0.12, 0.11])
    assert found["recall_long"].paired == expected
    # Holm: three comparisons have a p value, and the smallest of them is multiplied by three.
    cue = found["cue_long"]
    assert cue.p_value == pytest.approx(3 * cue.paired.p_value)
    assert cue.p_value < found["recall_long"].p_value < found["digits_short"].p_value


def test_verdict_holds_the_paper_against_the_grid():
    assert [gain.verdict for gain in gains(make_result()["tasks"])] == [
        "expected: does not help; found: does not help (agrees)",
        "expected: may help; found: helps (open)",
        "expected: does not help; found: does not help (agrees)",
        "expected: helps; found: helps (agrees)",
    ]


@pytest.mark.parametrize(
    ("conv", "ssm", "words"),
    [
        ((0.1, 0.5, 0.2), (0.9, 0.96, 0.95), "found: helps (agrees)"),
        ((0.9, 0.1, 0.9), (0.95, 0.95, 0.95), "found: undecided, more seeds are needed"),
        ((0.93, 0.94, 0.95), (0.95, 0.96, 0.97), "found: does not help (disagrees)"),  # same + 2
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "found: helps (agrees)"),  # no spread at all
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "found: does not help (disagrees)"),
        ((0.5,), (1.0,), "one seed: no finding"),
        ((0.1, 0.1, 0.1), (0.5, 0.51, 0.52), "no mixer learned it: no finding"),
    ],
)
def test_a_gain_must_be_sure_and_larger_than_five_points(conv, ssm, words):
    assert only_gain(conv, ssm).verdict == f"expected: helps; {words}"


def test_a_task_is_learned_by_the_mixers_that_reach_its_figure():
    task = make_task(
        "cue_long", is_long=True, autoregressive=False,
        accuracies={"conv": (0.2, 0.3), "attention full": (0.8, 1.0), "ssm": (0.8, 0.9)},
    )  # fmt: skip
    assert learned_by(task) == ["attention full"]
    assert learned_by(task | {"learned": 0.85}) == ["attention full", "ssm"]


def test_sceptic_takes_the_convolution_that_is_best_on_the_validation_split():
    task = make_task(
        "cue_long", is_long=True, autoregressive=False,
        accuracies={
            "conv": (0.2, 0.3), "conv deep": (0.5, 0.6), "conv dilated": (0.9, 0.94),
            "conv+ssm bidirectional": (0.95, 0.99),
        },
    )  # fmt: skip
    for found in task["cells"]:  # the deep one is the best on the validation split
        for run in found["runs"]:
            run["validation"] = 0.7 if found["mixer"] == "conv deep" else 0.1
    (gain,) = gains([task], sceptical=True)
    assert (gain.baseline, gain.paired.difference) == ("conv deep", pytest.approx(0.42))


def test_markdown_shows_every_cell_and_what_follows():
    result = make_result()
    text = tables_of(result)
    assert "| recall_long | 256 | 2.67 | long, autoregressive | 12.5 | 90 | 11.0 ± 0.6 |" in text
    assert "| **94.0 ± 1.5** | – |" in text
    assert "| recall_long | conv+ssm causal − conv | +83.0 | +78.0 … +88.0 |" in text
    assert "| recall_long | conv | 16 | 2 | 42 | 6 | 12,345 | 1.235 | 7.2 | 0.002 | 0.500 |" in text
    assert "chosen among 0.001, 0.002 on a validation split, 3 seeds" in text
    assert "15 min. Still to come: 2 cells." in text
    assert "Still to come" not in as_markdown(result | {"missing": 0})
    assert "learning rate 0.002 for all mixers" in as_markdown(
        result | {"settings": result["settings"] | {"learning_rates": [0.002]}}
    )
    for table in (block.splitlines() for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in table}) == 1
    assert "sceptic" not in text


def test_markdown_shows_how_deep_the_convolution_must_be():
    result = make_result()
    result["depths"] = [
        cell("conv", (0.3, 0.3, 0.3), depth=3, reach=9) | {"study_depth": 3},
        cell("conv", (0.9, 1.0, 0.95), depth=5, reach=15) | {"study_depth": 5},
        cell("conv+ssm bidirectional", (0.97, 0.99, 0.98)) | {"study_depth": 2},
    ]
    result["settings"]["depth_study"] = ["cue_long", [3, 5]]
    lines = tables_of(result).splitlines()
    assert "| conv, 3 blocks | 9 | 1.235 | 7.2 | 30.0 ± 0.0 |" in lines
    assert "| conv, 5 blocks | 15 | 1.235 | 7.2 | 95.0 ± 2.9 |" in lines
    assert "| conv+ssm bidirectional, 2 blocks | all | 1.235 | 7.2 | 98.0 ± 0.6 |" in lines
