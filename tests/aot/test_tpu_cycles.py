# SPDX-License-Identifier: Apache-2.0
"""What is counted of a TPU's programs, from texts that are given; no compiler is needed."""

import json

import jax
import pytest
from support.places import ROOT

from mambaout_jax.aot.tpu_cycles import MAPS, SCANS, as_text, bundles, cases, count_cycles

# A loop of 28 turns, as the program says, with one of unknown length in it; one that counts to 6.
PROGRAM = """HloModule jit_f, is_scheduled=true

%inner.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"10"}
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%p), backend_config={"estimated_cycles":"9999"}
}

%count.2 (p: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %constant.5), direction=LT, backend_config={"estimated_cycles":"1"}
}

%short (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"1"}
}

%branches (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = f32[8] conditional(%q, %x, %y), branch_computations={%short, %inner.1}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%condition.1, body=%inner.1
  %b = f32[8] fusion(%w), kind=kLoop, backend_config={"estimated_cycles":"5"}
  %_kernel.3 = f32[8] custom-call(%b), custom_call_target="tpu_custom_call"
}

ENTRY %main.7 (x: f32[8]) -> f32[8] {
  %w = f32[8] while(%x), condition=%condition.1, body=%outer, backend_config={"known_trip_count":{"n":"28"}}
  %v = (s32[], f32[8]) while(%x), condition=%count.2, body=%branches
  %_kernel.2 = (f32[8], f32[8]) custom-call(%w), custom_call_target="tpu_custom_call"
  ROOT %d = f32[8] fusion(%w), kind=kLoop, backend_config={"estimated_cycles":"100"}
}
"""  # noqa: E501


def test_cycles_of_loops_count_as_often_as_they_turn():
    cycles, kernels = count_cycles(PROGRAM, trips=(3.0, 7.0))  # the program knows better than 3
    assert cycles == 100 + 28 * (5 + 7 * 10) + 6 * 10  # the longer branch of two
    assert kernels == {"_kernel.2": 1, "_kernel.3": 28}


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r"depth 1 has no length .*trips=\(3,\) have 1; give one"):
        count_cycles(PROGRAM, trips=(3,))


def test_bundles_are_those_of_the_kernel(tmp_path):
    for name, count in (("_kernel.2", 512), ("_kernel.22", 7)):
        text = f"Schedule analysis:\n\ttotal scheduled bundles:    {count}\n\tempty: 8\n"
        (tmp_path / f"179-{name}-71-schedule-analysis_final_bundles.txt").write_text(text)
    assert bundles(tmp_path, "_kernel.2") == 512
    with pytest.raises(ValueError, match=r"no schedule of _kernel.4 .* in a process of its own"):
        bundles(tmp_path, "_kernel.4")


def test_every_implementation_is_there_at_every_size():
    found = list(cases())
    assert sum(case.operation == "depthwise_conv" for case in found) == 2 * len(MAPS)
    scans = [case for case in found if case.operation == "selective_scan"]
    assert {case.shape for case in scans} == set(SCANS)
    for case in scans:
        (B, L, D, _, G), (outer, inner) = case.shape, case.trips
        assert outer * inner == pytest.approx(L)
        assert abs(outer - inner) <= 1
        # Every step of the kernel's grid has 16 tokens, and of one group up to 512 channels: 576,
        # filled up to five times 128, cannot be shared out but by 128.
        assert case.steps == B * -(-L // 16) * (5 if D == 576 else G)
        y = jax.eval_shape(case.function, *case.arguments)
        assert y.shape == (B, L, D)


def committed():
    path = ROOT / "experiments" / "results" / "cycles_v5e.json"
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("shape", SCANS)
def test_auto_on_a_tpu_is_the_best_by_the_committed_cycles(shape):
    rows = {
        row["implementation"]: row["training"]["cycles"]
        for row in committed()
        if (row["operation"], tuple(row["shape"])) == ("selective_scan", shape)
        and "cycles" in row["training"]  # it fits
    }
    # "auto" is "pallas" that runs its kernel once more for the gradient.
    assert rows["pallas"] < rows["auto"] < 1.6 * rows["pallas"]
    others = min(cycles for word, cycles in rows.items() if word not in ("auto", "pallas"))
    # With one state the prefix scan is as cheap as the kernel, and takes more memory.
    assert rows["auto"] < others * (1.6 if shape[3] == 1 else 1)


def test_lax_is_the_best_convolution_on_a_tpu_by_the_committed_cycles():
    for shape in MAPS:
        lax, shift = (
            row["training"]["cycles"] for row in committed() if tuple(row["shape"]) == shape
        )
        assert lax < shift


def test_the_table_shows_what_failed_as_a_dash():
    run = {"cycles": 1_234_567, "in_kernels": 0, "temporaries": 3 * 2**20}
    row = {"operation": "selective_scan", "implementation": "chunked", "shape": [1, 2]}
    text = as_text([row | {"forward": run, "training": {"error": "too large"}}])
    assert "| selective_scan | 1x2 | chunked | 1.23 | – | – |" in text
