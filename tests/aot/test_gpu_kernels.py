# SPDX-License-Identifier: Apache-2.0
"""What is reported of compiled kernels, from counts that are given; no compiler is needed."""

from collections import Counter

import jax
import pytest

from mambaout_jax.aot.gpu_kernels import MAPS, SCANS, as_text, cases, report_on
from mambaout_jax.aot.machine_code import Kernel, Launch, Resources
from mambaout_jax.aot.sass import Loop


def kernel(*loops, moved=0):
    return Kernel(Resources(168, 0, 0, 1), Launch((3, 7, 16), 128, 1000), list(loops), 2048, moved)


def case_of(name, shape):
    return next(case for case in cases() if (case.name, case.shape) == (name, shape))


def test_every_kernel_is_there_at_every_size():
    assert len(list(cases())) == 2 * (len(SCANS) + len(MAPS))
    for case in cases():
        assert jax.eval_shape(case.function, *case.arguments) is not None
        assert 0 < case.used <= 1


def test_an_inner_loop_over_states_runs_as_often_as_there_are_states():
    chunk = Loop(0, Counter(float32=16, global_store=16), Counter())
    state = Loop(1, Counter(float32=64, exp=16, shared_load=32), Counter())
    row = report_on(case_of("scan", (8, 784, 384, 16)), kernel(chunk, state))
    assert row["per_element"]["float32"] == 1 + 16 * 4
    assert row["per_element"]["exp"] == 16
    assert row["per_element"]["all"] == 1 + 1 + 16 * (4 + 1 + 2)
    # 16 exp2 at 16 a clock; 33 loads and stores at 32 a clock.
    assert row["clocks"]["exp"] == row["bound"] == 1
    assert row["clocks"]["load_store"] == pytest.approx(33 / 32, abs=1e-4)
    assert row["of_bound"] == pytest.approx(32 / 33, abs=1e-3)


def test_sums_over_channels_count_half_of_the_time():
    state = Loop(1, Counter(float32=16), Counter(float32=32))
    row = report_on(case_of("scan gradient", (8, 784, 384, 16)), kernel(state))
    assert row["per_element"]["float32"] == 16 * (1 + 1)


@pytest.mark.parametrize("nested", [False, True])
def test_rows_count_alike_alone_and_within_strips(nested):
    loops = [Loop(int(nested), Counter(float32=392), Counter(global_store=8))]
    loops += [Loop(0, Counter(), Counter())] * nested
    row = report_on(case_of("convolution", (64, 56, 56, 96)), kernel(*loops))
    assert row["per_element"]["float32"] == 49
    assert row["per_element"]["global_store"] == 1
    assert row["clocks"]["float32"] == row["bound"] == pytest.approx(49 / 128, abs=1e-4)


def test_bytes_bound_what_computes_little():
    row = Loop(0, Counter(float32=8 * 49), Counter())
    case = case_of("convolution", (64, 56, 56, 96))
    report = report_on(case, kernel(row, moved=40 * 64 * 56 * 56 * 96))
    # 40 bytes of a number at 3 TB/s, spread over 132 multiprocessors of 1.98 GHz.
    assert report["clocks"]["memory"] == pytest.approx(40 / 3e12 * 132 * 1.98e9, rel=1e-3)
    assert report["of_bound"] == pytest.approx(49 / 128 / report["clocks"]["memory"], abs=1e-3)
    assert "| memory | 11% |" in as_text([report])


def test_the_bound_is_the_bytes_where_there_is_one_state():
    chunk = Loop(0, Counter(float32=16), Counter())
    report = report_on(case_of("scan", (8, 49, 576, 1)), kernel(chunk))
    assert report["bound"] == pytest.approx(6 / 3e12 * 132 * 1.98e9, rel=1e-3)


def test_padded_tokens_and_channels_make_elements_dearer():
    chunk = Loop(0, Counter(float32=16), Counter())
    row = report_on(case_of("scan", (2, 3136, 96, 16)), kernel(chunk))
    assert row["per_element"]["float32"] == pytest.approx(128 / 96, abs=1e-3)


def test_a_report_has_what_fits_and_does_without_a_disassembler():
    row = report_on(case_of("convolution", (64, 56, 56, 96)), kernel())
    assert (row["blocks"], row["blocks_per_multiprocessor"]) == (3 * 7 * 16, 3)
    assert row["temporaries"] == 2048
    assert "per_element" not in row
    assert "| convolution | 64x56x56x96 | 168 | 0 | 1,001 | 336 | 3 |" in as_text([row])
