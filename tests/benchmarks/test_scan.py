# SPDX-License-Identifier: Apache-2.0
"""The scan benchmark: what it measures at tiny sizes, the crossovers, and what it writes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.benchmarks import scan
from mambaout_jax.benchmarks.scan_bounds import Amounts
from mambaout_jax.benchmarks.scan_mixers import PASSES
from mambaout_jax.cli.main import main
from mambaout_jax.models.vmamba import VARIANTS, VMamba

pytestmark = pytest.mark.long

TINY = {"widths": (8,), "lengths": (64, 16), "tokens_per_call": 64, "state_size": 1, "rounds": 2}
MIXERS = ("conv", "sequential", "attention")
BAR = {"mixer": "associative", "batch": 1, "length": 16, "width": 8, "state_size": 1, "groups": 4}
BAR |= {"pass": "forward", "status": "measured", "note": "", "temp_bytes": 3 * 2**20}
BAR |= {"median_ms": 1.5, "time_over_chunked": 2.5, "memory_over_chunked": 3.25}
BAR |= {"bound": None, "of_bound": None}
BOUND = {"exponentials": 0.93, "multiply_adds": 0.4, "bytes": 0.6}
CHUNKED = BAR | {"mixer": "chunked", "bound": BOUND, "of_bound": 0.62, "memory_over_chunked": 1.0}
PEER = {"title": "Ours against theirs", "note": "no comparison", "rows": []}


@pytest.fixture(scope="module")
def kept():
    """How many rows `run` has kept, after each of them."""
    return []


@pytest.fixture(scope="module")
def result(kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "block_peer", lambda rounds: PEER | {"rounds": rounds})
        return scan.run(
            **TINY, mixers=MIXERS, bars=(), keep=lambda partial: kept.append(len(partial["rows"]))
        )


def row(mixer, length, median, pass_name="forward", status="measured", width=8):
    return {"mixer": mixer, "width": width, "length": length, "pass": pass_name,
            "status": status, "median_ms": median}  # fmt: skip


def test_rows_are_kept_as_they_come(result, kept):
    assert kept == [6, 12]


def test_result_has_a_row_per_mixer_length_and_pass(result):
    keys = [(row["length"], row["pass"], row["mixer"]) for row in result["rows"]]
    assert keys == [(L, name, mixer) for L in (16, 64) for name in PASSES for mixer in MIXERS]
    assert [row["batch"] for row in result["rows"]] == [4] * 6 + [1] * 6
    for row in result["rows"]:
        assert (row["status"], row["note"]) == ("measured", "")
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["compile_seconds"] > 0
    assert result["environment"]["platform"] == "cpu"
    assert result["settings"]["limits"]["memory"] > 2**20
    assert result["peer"] == PEER | {"rounds": 2}
    assert result["rates"] is None  # there are no bars
    assert result["crossovers"] == scan.find_crossovers(result["rows"])
    assert [found["pass"] for found in result["crossovers"]] == list(PASSES)


def test_default_mixers_are_those_of_the_platform(monkeypatch):
    measured = []
    monkeypatch.setattr(scan, "make_parameters", lambda width, settings: settings.mixers)
    monkeypatch.setattr(scan, "measure_mixers", lambda *given: measured.append(given) or [])
    monkeypatch.setattr(scan, "measure_scans", lambda shape, settings, rates: [(shape, rates)])
    monkeypatch.setattr(scan, "measure_rates", lambda rounds, memory: Amounts(rounds, memory, 3.0))
    monkeypatch.setattr(scan, "block_peer", lambda rounds: PEER)
    result = scan.run(widths=(8, 16), lengths=(64, 16), budget_seconds=7, memory_limit=5)
    assert result["bars"] == [(shape, (5, 5, 3.0)) for shape in scan.BARS]
    assert result["rates"] == {"exponentials": 5, "multiply_adds": 5, "bytes": 3.0}
    assert [given[1:3] for given in measured] == [(8, 16), (8, 64), (16, 16), (16, 64)]
    mixers = ("conv", "sequential", "associative", "chunked", "attention", "causal_attention")
    assert {given[0] for given in measured} == {mixers}
    # Lengths of one width know of each other, those of another do not.
    previous = [given[4] for given in measured]
    assert previous[0] is previous[1]
    assert previous[1] is not previous[2]
    assert result["settings"]["tokens_per_call"] == 6272
    assert result["settings"]["limits"] == {"memory": 5, "seconds": 7}


def test_bars_with_groups_are_the_first_stages_of_vmamba():
    dims = VARIANTS["vmamba_v9_tiny"].backbone["dims"]
    stages = [
        (2, (224 // stride) ** 2, 4 * VMamba.expand * dims[i], VMamba.state_size, 4)
        for i, stride in enumerate((4, 8))
    ]
    assert [bar for bar in scan.BARS if bar[-1] > 1] == stages


def test_crossover_lies_between_lengths_in_proportion_of_logarithms():
    # log2 of attention over scan is -2 at 16 and +1 at 128: zero two thirds of the way, at 64.
    rows = [row("chunked", 16, 4.0), row("chunked", 128, 4.0)]
    rows += [row("attention", 16, 1.0), row("attention", 128, 8.0)]
    (found,) = scan.find_crossovers(rows)
    length = found.pop("length")
    assert length == pytest.approx(64)
    assert found == {"width": 8, "pass": "forward", "attention": "attention", "scan": "chunked",
                     "relation": "="}  # fmt: skip


@pytest.mark.parametrize(
    ("attention", "relation", "length"),
    [
        ({16: 3.0, 64: 9.0, 256: 9.0}, "<", 16),
        ({16: 1.0, 64: 1.0, 256: 2.0}, ">", 256),  # as dear is not dearer
        ({16: 3.0, 64: 1.0, 256: 4.0}, "=", 128.0),  # for good, not for the first time
        ({64: 1.0}, ">", 64),
    ],
)
def test_crossover_is_where_attention_stays_dearer(attention, relation, length):
    rows = [row("chunked", L, 2.0) for L in (16, 64, 256)]
    rows += [row("attention", L, median) for L, median in attention.items()]
    rows.append(row("attention", 1024, None, status="too slow"))
    (found,) = scan.find_crossovers(rows)
    assert (found["relation"], found["length"]) == (relation, pytest.approx(length))


def test_crossovers_need_two_mixers_and_a_common_length():
    rows = [row("chunked", 16, 1.0), row("attention", 64, 1.0), row("conv", 16, 1.0)]
    assert scan.find_crossovers(rows) == []
    rows += [row("attention", 16, 1.0, "forward+backward"), row("attention", 16, 1.0, width=16)]
    assert scan.find_crossovers(rows) == []
    rows += [row("causal_attention", 16, 2.0), row("sequential", 16, 1.0)]
    pairs = {(found["attention"], found["scan"]) for found in scan.find_crossovers(rows)}
    assert pairs == {("causal_attention", "chunked"), ("causal_attention", "sequential")}


def test_table_prints_times_ratios_and_reasons(result, capsys):
    missing = {"status": "too large", "note": "needs 9 bytes, and 1 may be used"}
    missing |= {"median_ms": None, "over_conv": None}
    rows = [*result["rows"][:-1], result["rows"][-1] | missing]
    rates = {"exponentials": 2.1e9, "multiply_adds": 4.56e10, "bytes": 1.2e10}
    scan.print_table(result | {"rows": rows, "rates": rates, "bars": [BAR, CHUNKED]})
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("D=8 N=1, forward: ms per call (over conv)")
    assert lines[first + 1].split() == ["L", "batch", *MIXERS]
    conv, sequential = result["rows"][:2]
    cells = lines[first + 2].split()
    assert cells[:4] == ["16", "4", f"{conv['median_ms']:.2f}", "(1.0x)"]
    assert cells[4:6] == [f"{sequential['median_ms']:.2f}", f"({sequential['over_conv']:.1f}x)"]
    both = lines.index("D=8 N=1, forward+backward: ms per call (over conv)")
    assert lines[both + 3].endswith("too large")
    words = "attention D=8 L=64 forward+backward: too large, needs 9 bytes, and 1 may be used"
    assert words in lines
    found = result["crossovers"][0]
    length = "L {relation} {length:,.0f}".format(**found)
    words = f"D=8 forward: attention than sequential {length} 6D = 48"
    assert words.split() in [line.split() for line in lines]
    assert [line.split() for line in lines[-6:]] == [
        words.split()
        for words in (
            "2.10e+09 exponentials, 4.56e+10 multiply-adds and 1.20e+10 bytes of a copy per second",
            "B=1 L=16 D=8 N=1 G=4 forward associative 1.50 (2.5x) 3.00 (3.2x)",
            "B=1 L=16 D=8 N=1 G=4 forward chunked 1.50 (2.5x) 3.00 (1.0x) "
            "bound exp 0.93 ms (62 %), copy 0.60 ms (40 %)",
            "",
            PEER["title"],
            PEER["note"],
        )
    ]


def test_verb_writes_json_csv_and_png(result, capsys, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(scan, "run", lambda **arguments: given.update(arguments) or result)
    out = tmp_path / "scan_cpu.json"
    command = ["bench", "scan", "--widths", "8", "16", "--lengths", "16", "--mixers", "conv"]
    command += ["--state-size=1", "--device=cpu", "--budget-seconds=2.5", "--memory-limit=9"]
    assert main([*command, "--quick", "--out", str(out)]) == 0
    assert given.pop("keep")
    assert given == scan.QUICK | {
        "widths": [8, 16], "lengths": [16], "mixers": ["conv"], "state_size": 1, "device": "cpu",
        "budget_seconds": 2.5, "memory_limit": 9,
    }  # fmt: skip
    files = [out, out.with_suffix(".csv"), out.with_suffix(".png")]
    assert capsys.readouterr().out.splitlines()[-3:] == [str(file) for file in files]
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(result))
    with files[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in written["rows"]
    ]
    assert np.asarray(Image.open(files[2])).std() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixers": ("conv", "convolution")}, r"mixers=\['convolution'\] .* allowed are conv, "),
        ({"mixers": ()}, "mixers: none, or 0"),
        ({"widths": ()}, "widths: none, or 0"),
        ({"lengths": (49, 0)}, "lengths: none, or 0"),
        ({"rounds": 0}, "rounds: "),
        ({"state_size": 0}, "state_size: "),
        ({"tokens_per_call": 0}, "tokens_per_call: "),
        ({"device": "tpu"}, "device='tpu' is not there"),
        ({"widths": (100,), "mixers": ("attention",)}, "heads=3 does not divide the 100 channels"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_measured(arguments, words, monkeypatch):
    monkeypatch.setattr(scan, "measure_mixers", None)
    with pytest.raises(ValueError, match=words):
        scan.run(**arguments)
