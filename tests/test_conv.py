# SPDX-License-Identifier: Apache-2.0
"""The convolution benchmark: what it reports is what it measured."""

import json

import pytest

from mambaout_jax.benchmarks.conv import bench_conv, print_table


@pytest.fixture(scope="module")
def result():
    return bench_conv(quick=True)


def test_rows_hold_both_contenders_and_their_ratio(result):
    result = json.loads(json.dumps(result))
    assert [(row["shape"], row["pass"]) for row in result["rows"]] == [
        ([2, 14, 14, 384], "forward"),
        ([2, 14, 14, 384], "forward+backward"),
        ([2, 7, 7, 576], "forward"),
        ([2, 7, 7, 576], "forward+backward"),
    ]
    for row in result["rows"]:
        lax, shift = row["milliseconds"]["lax"], row["milliseconds"]["shift"]
        assert lax["min"] / shift["max"] <= row["speedup"]["median"] <= lax["max"] / shift["min"]
        assert row["difference"] < 1e-4  # the contenders compute the same thing


def test_table_prints_the_medians(result, capsys):
    print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(result["rows"])
    first = result["rows"][0]
    assert f"{first['speedup']['median']:.1f}x" in lines[2]
    assert lines[2].startswith("2x14x14x384")
