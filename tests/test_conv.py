# SPDX-License-Identifier: Apache-2.0
"""The convolution benchmark: what it reports is what it measured."""

import json

import pytest

from mambaout_jax.benchmarks import conv
from mambaout_jax.cli import main


@pytest.fixture(scope="module")
def result():
    return conv.run(**conv.QUICK)


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
    conv.print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(result["rows"])
    first = result["rows"][0]
    assert f"{first['speedup']['median']:.1f}x" in lines[2]
    assert lines[2].startswith("2x14x14x384")


def test_verb_measures_prints_and_writes(result, capsys, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(conv, "run", lambda **arguments: given.update(arguments) or result)
    out = tmp_path / "new" / "conv.json"
    command = ["bench", "conv", "--quick", "--rounds=3", "--dtype=bfloat16", "--out", str(out)]
    assert main(command) == 0
    assert given == conv.QUICK | {"rounds": 3, "dtype": "bfloat16"}
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("shape")
    assert lines[-1] == str(out)
