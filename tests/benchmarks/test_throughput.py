# SPDX-License-Identifier: Apache-2.0
"""The comparison of whole models: who is timed, the bar before it, rows, table and files."""

import types

import numpy as np
import pytest

from mambaout_jax.benchmarks import throughput
from mambaout_jax.benchmarks.lineup import Entry
from mambaout_jax.benchmarks.torch_models import Peer

LOGITS = np.arange(6.0).reshape(2, 3)


class Side:
    """In place of `Ours` and of `Theirs`: notes what it was made of, and times nothing."""

    made: list

    def __init__(self, first, images, labels, dtype, device=None, **options):
        self.made.append((first, images.shape, labels.shape, dtype, device, options))
        self.title = "timm"
        ours = ("ours", *(f"ours, {scan}" for scan in options.get("scans", ())))
        self.logits = LOGITS if device else dict.fromkeys(ours, LOGITS)

    def state_dict(self):
        return {"weight": 1}

    def calls(self, passed, plan, compiled=None):
        titles = [self.title] if compiled is not None else list(self.logits)
        if compiled is None:
            plan["temp_bytes"] |= {title: 2**20 * len(title) for title in titles}
        return dict.fromkeys(titles, lambda: np.ones(1))


@pytest.fixture
def sides(monkeypatch):
    """What the sides of a run were made of."""
    monkeypatch.setattr(Side, "made", [], raising=False)
    monkeypatch.setattr(throughput, "Ours", Side)
    monkeypatch.setattr(throughput, "Theirs", Side)
    torch = types.SimpleNamespace(manual_seed=lambda seed: None)
    monkeypatch.setattr(throughput.importlib, "import_module", lambda name: torch)
    monkeypatch.setattr(throughput, "_torch_versions", lambda: {"torch": "2", "timm": "3"})
    return Side.made


def enter(monkeypatch, *entries):
    monkeypatch.setattr(throughput, "line_up", lambda *_, **__: entries)


def test_models_without_peers_are_measured_alone(monkeypatch, sides):
    enter(monkeypatch, Entry("vim_tiny", True, ("associative",), None))
    kept = []
    result = throughput.run(
        models=["vim_tiny"], batch_size=2, image_size=32, rounds=1,
        keep=lambda result: kept.append(len(result["rows"])),
    )  # fmt: skip
    assert kept == [1, 2]
    assert "torch" not in result["environment"]
    assert sides == [
        ("vim_tiny", (2, 32, 32, 3), (2,), "float32", None,
         {"scans": ("associative",), "state_dict": None})
    ]  # fmt: skip
    assert [row["pass"] for row in result["rows"]] == ["inference", "training"]
    row = result["rows"][1]
    assert list(row["images_per_second"]) == ["ours", "ours, associative"]
    assert list(row["speedup"]) == ["ours, associative"]
    assert row["temp_bytes"] == {"ours": 4 * 2**20, "ours, associative": 17 * 2**20}


def test_peers_give_the_weights_and_yardsticks_stand_alone(monkeypatch, sides):
    peer = Peer("timm", None)
    enter(
        monkeypatch,
        Entry("mambaout_tiny", True, (), lambda: peer),
        Entry("vit_small_patch16_224", False, (), lambda: peer),
    )
    result = throughput.run(
        models=["mambaout_tiny"], batch_size=2, image_size=32, rounds=1, passes=["inference"]
    )
    theirs, ours, yardstick = sides
    assert theirs[0] is yardstick[0] is peer
    assert theirs[4] == "cpu"
    assert ours[5]["state_dict"] == {"weight": 1}
    assert result["environment"]["timm"] == "3"
    contenders = [list(row["images_per_second"]) for row in result["rows"]]
    assert contenders == [["ours", "timm"], ["timm"]]
    assert [list(row["speedup"]) for row in result["rows"]] == [["timm"], []]


def test_unknown_passes_are_named():
    with pytest.raises(ValueError, match=r"passes=\['learning'\] are not known; allowed are infer"):
        throughput.run(models=["vim_tiny"], passes=["learning"])


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_contenders_of_other_logits_are_refused(dtype, allowed):
    spread = LOGITS.std()
    near, far = LOGITS + 0.9 * allowed * spread, LOGITS + 1.1 * allowed * spread
    throughput.check_logits("vim_tiny", {"official": LOGITS, "ours": near}, dtype)
    words = "the logits of vim_tiny differ between 'ours, associative' and 'official' by"
    for wrong in (far, np.full_like(LOGITS, np.nan)):
        logits = {"official": LOGITS, "ours": near, "ours, associative": wrong}
        with pytest.raises(ValueError, match=words):
            throughput.check_logits("vim_tiny", logits, dtype)


def test_row_has_speeds_and_ratios_round_by_round():
    times = {"ours": [100.0, 200.0, 100.0], "timm": [150.0, 200.0, 400.0]}
    row = throughput._row(times, batch_size=8)
    assert row["images_per_second"]["ours"] == {"median": 80.0, "min": 40.0, "max": 80.0}
    assert row["speedup"] == {"timm": {"median": 1.5, "min": 1.0, "max": 4.0}}
    alone = throughput._row({"timm": [100.0]}, batch_size=8)
    assert alone["speedup"] == {}


def result_of(times, **plan):
    where = {"device": "cpu", "platform": "cpu", "machine": "x86_64", "cpu_count": 2, "jax": "1"}
    row = {"model": "mambaout_femto", "pass": "inference"} | throughput._row(times, 8)
    row |= {key: {} for key in throughput._PLAN} | plan
    return {"environment": where, "dtype": "float32", "batch_size": 8, "image_size": 224,
            "rounds": 3, "rows": [row]}  # fmt: skip


def print_row(capsys, times, **plan):
    """The words of every line that the table has of a row."""
    throughput.print_table(result_of(times, **plan))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_table_prints_medians_and_ranges(capsys):
    times = {"ours": [100.0, 200.0, 100.0], "timm": [150.0, 200.0, 400.0]}
    assert print_row(capsys, times) == [
        "cpu (cpu), jax 1; float32, batch 8, 224 pixels; images/s, medians",
        "mambaout_femto inference ours 80.0 timm 40.0 ours / timm: 1.50x (1.00-4.00)",
    ]


def test_table_prints_compilation_and_memory(capsys):
    lines = print_row(
        capsys,
        {"ours": [100.0]},
        compile_seconds={"ours": 9.71},
        temp_bytes={"ours": 3 * 2**30, "ours, associative": 10 * 2**30},
        torch_compile_seconds={"timm compiled": 4.0},
        torch_peak_bytes={"timm": 2**20},
    )
    assert lines[2:] == [
        "compilation: ours 9.7 s; timm compiled 4.0 s",
        "temporary memory: ours 3,072.0 MiB; ours, associative 10,240.0 MiB (ours 0.30 of it)",
        "memory in all: timm 1.0 MiB",
    ]


def test_table_says_where_torch_compile_failed(capsys):
    lines = print_row(capsys, {"timm": [100.0]}, torch_compile_error="no g++")
    assert lines[1:] == ["mambaout_femto inference timm 80.0", "torch.compile failed: no g++"]


def test_files_are_numbers_and_a_picture_where_there_is_one(tmp_path):
    path = tmp_path / "a.json"
    assert throughput.save(result_of({"timm": [100.0]}), path) == [path]
    assert throughput.save(result_of({"ours": [100.0]}), path) == [path, tmp_path / "a.png"]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
