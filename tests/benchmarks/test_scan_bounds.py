# SPDX-License-Identifier: Apache-2.0
"""The bound of the bare scan: its work by hand, and the rates of the machine."""

import numpy as np
import pytest

from mambaout_jax.benchmarks import scan_bounds
from mambaout_jax.benchmarks.scan_bounds import Amounts, bound_milliseconds, count_work

SHAPE = (1, 64, 4, 2, 2)  # 256 channels of tokens, with 256 items of B


@pytest.mark.parametrize(
    ("itemsize", "forward", "backward"),
    [
        # 4 exponentials and 12 or 32 multiply-adds for each of the 256.
        # 12 bytes and, of B and C, 8; 20 bytes, 16 of B, C and their gradients, 1/4 of states.
        (4, (1024, 3072, 5120), (1024, 8192, 9280)),
        # 6 and 4; 10, 4 and 8, 1/4.
        (2, (1024, 3072, 2560), (1024, 8192, 5696)),
    ],
)
def test_work_is_that_counted_by_hand(itemsize, forward, backward):
    work = count_work(SHAPE, itemsize)
    assert work == {"forward": Amounts(*forward), "backward": Amounts(*backward)}


def test_bound_is_the_work_over_the_rates():
    rates = Amounts(exponentials=1024e3, multiply_adds=1024e3, bytes=320e3)
    assert bound_milliseconds(SHAPE, 4, rates) == {
        "forward": {"exponentials": 1, "multiply_adds": 3, "bytes": 16},
        "forward+backward": {"exponentials": 2, "multiply_adds": 11, "bytes": 45},
    }


@pytest.mark.parametrize(
    ("states", "bound", "words"),
    [
        (16, (3.1, 1.0, 0.5), "bound exp 3.10 ms (62 %)"),
        (16, (1.0, 3.1, 0.5), "bound FMA 3.10 ms (62 %)"),
        (1, (3.1, 1.0, 0.5), "bound exp 3.10 ms (62 %), copy 0.50 ms (10 %)"),
        (1, (1.0, 0.5, 3.1), "bound copy 3.10 ms (62 %)"),
    ],
)
def test_words_name_the_longest_and_with_one_state_the_copy(states, bound, words):
    row = {"state_size": states, "median_ms": 5.0, "of_bound": 0.62}
    row["bound"] = Amounts(*bound)._asdict()
    assert scan_bounds.describe_bound(row) == words


def test_rates_are_work_over_the_shortest_round(monkeypatch):
    monkeypatch.setattr(scan_bounds, "_ITEMS_PER_CORE", 8)
    monkeypatch.setattr(scan_bounds, "_COPIED", 400)
    monkeypatch.setattr(scan_bounds.os, "cpu_count", lambda: 2)
    calls = {}

    def clock(given, *, rounds, **_):
        calls.update(given, rounds=rounds)
        return {"exponentials": [4.0, 2.0], "multiply_adds": [1.0, 2.0], "bytes": [0.5, 0.25]}

    monkeypatch.setattr(scan_bounds, "interleaved_milliseconds", clock)
    rates = scan_bounds.measure_rates(2, memory=800)
    assert rates == pytest.approx((32 * 16 / 2e-3, 256 * 16 / 1e-3, 800 / 0.25e-3))
    assert calls["rounds"] == 2
    # What is timed is what is counted.
    x = np.linspace(0, 1, 16)
    expected = np.exp(-np.outer(np.arange(1, 33), x)).sum(0)
    np.testing.assert_allclose(calls["exponentials"](), expected, rtol=1e-5)
    # Each of the eight chains n·x goes half of its way to 0.5, 32 times.
    expected = 8 * 0.5 + (36 * x - 8 * 0.5) / 2**32
    np.testing.assert_allclose(calls["multiply_adds"](), expected, rtol=1e-6)
    first, second = (calls["bytes"]() for _ in range(2))
    np.testing.assert_array_equal(second, np.full(100, 2.0))
    assert first.is_deleted()  # into its memory
    assert scan_bounds.measure_rates(2, memory=799) is None


def test_missing_rates_are_told():
    words = "no bounds: they are for CPUs, and need 1,073,741,824 bytes to be measured"
    assert scan_bounds.describe_rates(None) == words
