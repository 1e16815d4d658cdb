# SPDX-License-Identifier: Apache-2.0
"""Table 1 as CSV and Markdown: each figure where it belongs, and what is missing in words."""

import csv
import io
import re

import pytest

from mambaout_jax.report.printed import TABLE_1, Printed
from mambaout_jax.report.rows import Error, Row, table_rows
from mambaout_jax.report.texts import as_csv, as_markdown, speed

ABSENT = Row(Printed("A|B*", "Pool", "5", "-", "70.0", "no_net"), None, "", None, None, None)


@pytest.fixture(scope="module")
def measured():
    """The first row with everything, the second with nothing."""
    first, second = table_rows()[:2]
    speed = {"median": 1234.5, "min": 1200.0, "max": 1250.0}
    error = Error(2.5e-6, "float32", 2)
    return [first._replace(error=error, speed=speed, memory=3 * 2**19), second, ABSENT]


def lines_of(rows):
    return list(csv.DictReader(io.StringIO(as_csv(rows))))


def test_csv_has_the_rows_in_the_papers_order():
    lines = lines_of(table_rows())
    assert [line["model"] for line in lines] == [printed.model for printed in TABLE_1]
    for line, printed in zip(lines, TABLE_1, strict=True):
        assert line["token_mixer"] == printed.token_mixer
        assert line["published_top1_percent"] == printed.top1
        assert line["published_parameters_millions"] == printed.parameters
        assert line["published_macs_billions"] == printed.macs
        assert abs(int(line["parameters"]) / 1e6 - float(printed.parameters)) < 2.5
        assert int(line["macs"]) > 4e8
        assert line["images_per_second"] == line["temporary_memory_bytes"] == "not measured"


def test_csv_has_what_was_measured(measured):
    first, second, third = lines_of(measured)
    assert first["logit_error"] == "2.5e-06"
    assert (first["logit_error_dtype"], first["logit_error_references"]) == ("float32", "2")
    speeds = [first[f"images_per_second{end}"] for end in ("", "_min", "_max")]
    assert list(map(float, speeds)) == [1234.5, 1200, 1250]
    assert first["temporary_memory_bytes"] == str(3 * 2**19)
    assert second["logit_error"] == second["images_per_second_min"] == "not measured"
    unknown = {"library_model", "image_size", "parameters", "macs", "logit_error",
               "images_per_second", "temporary_memory_bytes"}  # fmt: skip
    assert {third[key] for key in unknown} == {"not in this library"}
    assert third["published_macs_billions"] == "-"


def test_csv_tells_macs_by_hand_where_the_paper_prints_these():
    by_hand = {
        line["model"]: line["macs_by_hand_formula"]
        for line in lines_of(table_rows())
        if line["macs_by_hand_formula"]
    }
    assert by_hand.keys() == {"Vim-Ti", "Vim-S", "LocalVim-T", "LocalVim-S"}
    assert by_hand["Vim-Ti"] == "1485166080"


def test_markdown_is_a_table_with_what_its_figures_mean(measured):
    lines = as_markdown(measured, ["First.", "Second."]).split("\n")
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]
    assert {len(row) for row in cells} == {12}
    assert cells[2] == ["VAN-B0", "Conv", "224", "75.4", "4", "0.9", "4.11", "0.86", "2.5e-06",
                        "1,234", "1.5", ""]  # fmt: skip
    assert cells[3][8:11] == ["not measured"] * 3
    assert cells[4][0] == r"A\|B\*"
    assert cells[4][6] == "not in this library"
    assert lines[-3:] == ["- First.", "- Second.", ""]


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (9.876, "9.88"), (99.96, "100"), (12345.6, "12,346")]
)
def test_speeds_have_three_digits(measured, value, text):
    assert speed(measured[0]._replace(speed={"median": value})) == text
