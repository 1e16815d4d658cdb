# SPDX-License-Identifier: Apache-2.0
"""The bound of the scan on an H100, and what is told where there is no peer."""

import sys
import types

import jax
import pytest

from mambaout_jax.benchmarks import scan_peer
from mambaout_jax.benchmarks.scan_peer import (
    bound_microseconds,
    collect,
    cuda_peer,
    print_peer,
)


# Worked out by hand, in whole microseconds: bytes, exponentials and instructions of each pass.
@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((64, 3136, 192, 16), (81, 166, 85), (167, 166, 347)),
        ((64, 784, 384, 16), (40, 83, 43), (80, 83, 174)),
        ((64, 49, 768, 16), (5, 10, 5), (10, 10, 22)),
        ((64, 3136, 192, 1), (77, 28, 16), (131, 28, 54)),
    ],
)
def test_bound_is_the_longest_of_three(shape, forward, backward):
    bounds = bound_microseconds(*shape)
    for name, expected in (("forward", forward), ("backward", backward)):
        kinds = [bounds[name][kind] for kind in ("bytes", "exponentials", "instructions")]
        assert [round(value) for value in kinds] == list(expected)
        assert bounds[name]["bound"] == max(kinds)


def test_missing_peer_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    peer = cuda_peer(jax.devices()[0], 2)
    assert peer["rows"] == []
    assert peer["note"].startswith("no comparison with mamba_ssm: ")
    assert "torch" in peer["note"]
    print_peer(peer)
    assert capsys.readouterr().out.splitlines()[-1] == peer["note"]


def test_broken_peer_is_told_and_stops_nothing(monkeypatch):
    def tensor(*_, **__):
        raise RuntimeError("no CUDA driver\nmore words")

    torch = types.SimpleNamespace(tensor=tensor, bfloat16="bfloat16")
    interface = types.SimpleNamespace(selective_scan_fn=print)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setattr("mambaout_jax.benchmarks.scan_peer.SHAPES", ((1, 8, 4, 2),))
    peer = cuda_peer(jax.devices()[0], 2)
    assert (peer["note"], peer["rows"]) == ("comparison with mamba_ssm failed: no CUDA driver", [])


def test_rows_before_a_failure_are_kept(monkeypatch):
    monkeypatch.setattr(scan_peer, "version", lambda package: f"1.{len(package)}")

    def measure():
        yield {"pass": "forward"}
        raise ValueError("the results differ")

    assert collect("Ours against theirs", "peer", measure()) == {
        "title": "Ours against theirs, torch 1.5 and peer 1.4",
        "note": "comparison with peer failed: the results differ",
        "rows": [{"pass": "forward"}],
    }


def test_table_has_times_ratio_and_share_of_the_bound(capsys):
    times = {"median": 0.25, "min": 0.2, "max": 0.3}
    row = {
        "shape": {"B": 64, "L": 3136, "D": 192, "N": 16},
        "pass": "forward",
        "milliseconds": {"pallas": times, "mamba_ssm": times | {"median": 0.5}},
        "ratio": {"median": 2.0, "min": 1.5, "max": 2.5},
        "of_bound": 0.664,
        "difference": 0.001,
    }
    rows = [row, row | {"of_bound": None}]
    print_peer({"title": "Ours against theirs", "note": "", "rows": rows})
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines[0].startswith("B=64 L=3136 D=192 N=16")
    shown = "forward pallas 0.250 ms mamba_ssm 0.500 ms 2.00x (1.50-2.50) 66% of the H100's bound"
    assert " ".join(lines[0].split()).endswith(shown)
    assert "bound" not in lines[1]
