# SPDX-License-Identifier: Apache-2.0
"""The convolution benchmark: what it reports is what it measured."""

import json
import types

import jax
import numpy as np
import pytest

from mambaout_jax.benchmarks import conv
from mambaout_jax.cli.main import main

TINY = {"shapes": ((6, 8, 7, 1), (3, 4, 7, 2)), "batch_size": 2, "rounds": 2}


@pytest.fixture(scope="module")
def kept():
    """How many rows `run` has kept, after each of them."""
    return []


@pytest.fixture(scope="module")
def result(kept):
    return conv.run(**TINY, keep=lambda partial: kept.append(len(partial["rows"])))


def test_rows_are_kept_as_they_come(result, kept):
    assert kept == [1, 2, 3, 4]


def test_rows_hold_the_contenders_and_their_ratios(result):
    result = json.loads(json.dumps(result))
    assert {row["kernel_side"] for row in result["rows"]} == {7}
    assert [row["dilation"] for row in result["rows"]] == [1, 1, 2, 2]
    assert [(row["shape"], row["pass"]) for row in result["rows"]] == [
        ([2, 6, 6, 8], "forward"),
        ([2, 6, 6, 8], "forward+backward"),
        ([2, 3, 3, 4], "forward"),
        ([2, 3, 3, 4], "forward+backward"),
    ]
    for row in result["rows"]:
        assert row["difference"].keys() == row["milliseconds"].keys() - {"lax"}
        assert max(row["difference"].values()) < 1e-4  # the contenders compute the same thing
        for name, ratio in row["speedup"].items():
            other, shift = row["milliseconds"][name], row["milliseconds"]["shift"]
            assert other["min"] / shift["max"] <= ratio["median"] <= other["max"] / shift["min"]


def test_table_prints_the_medians(result, capsys):
    conv.print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(result["rows"])
    first = result["rows"][0]
    assert f"shift over lax: {first['speedup']['lax']['median']:.1f}x" in lines[1]
    assert lines[1].startswith("2x6x6x8 by 7 ")
    assert lines[3].startswith("2x3x3x4 by 7, 2 apart ")


def test_shapes_are_those_asked_for(monkeypatch):
    monkeypatch.setattr(
        conv, "_race", lambda name, arrays, *_: {"drawn": [a.shape for a in arrays]}
    )
    rows = conv.run(shapes=((5, 3, 1, 1), (4, 2, 9, 2)), batch_size=2)["rows"]
    drawn = [((2, 5, 5, 3), (1, 1, 3)), ((2, 4, 4, 2), (9, 9, 2))]
    assert [row["drawn"] for row in rows] == [[x, k, x] for x, k in drawn for _ in conv.PASSES]
    monkeypatch.setattr(conv, "_draw", lambda shape, kernel_side, dtype: ())
    swept = conv.run(shapes="sweep", batch_size=2)["rows"][:: len(conv.PASSES)]
    found = [(*row["shape"][2:], row["kernel_side"], row["dilation"]) for row in swept]
    assert found == list(conv.SHAPES["sweep"])


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_peer_is_raced_only_where_it_computes_the_same(monkeypatch, factor):
    def peer(torch, place, x, kernel, dy, dilation, pass_name):
        options = {"implementation": "lax", "dilation": dilation}
        results = jax.tree.leaves(conv._FUNCTIONS[pass_name](x, kernel, dy, **options))
        results = [factor * np.asarray(y) for y in results]
        return lambda: None, lambda: results

    monkeypatch.setattr(conv, "find_torch", lambda: types.SimpleNamespace(__version__="2.0"))
    monkeypatch.setattr(conv, "_torch_call", peer)
    arguments = {"shapes": ((5, 3, 7, 2),), "batch_size": 2, "rounds": 2}
    if factor != 1:
        with pytest.raises(ValueError, match=r"\['torch'\] differ from lax by"):
            conv.run(**arguments)
        return
    result = conv.run(**arguments)
    assert result["environment"]["torch"] == "2.0"
    for row in result["rows"]:
        assert row["milliseconds"].keys() == {"lax", "shift", "torch"}
        assert row["speedup"].keys() == {"lax", "torch"}


def test_verb_measures_prints_and_writes(result, capsys, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(conv, "run", lambda **arguments: given.update(arguments) or result)
    out = tmp_path / "conv.json"
    command = ["bench", "conv", "--quick", "--rounds=3", "--dtype=bfloat16", "--out", str(out)]
    assert main(command) == 0
    keep = given.pop("keep")
    assert given == conv.QUICK | {"rounds": 3, "dtype": "bfloat16"}
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2x6x6x8")
    assert lines[-1] == str(out)
    keep({"rows": [1]})  # what the verb would have written after a row
    assert json.loads(out.read_text()) == {"rows": [1]}
    assert list(out.parent.iterdir()) == [out]
