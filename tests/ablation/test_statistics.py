# SPDX-License-Identifier: Apache-2.0
"""The statistics of seeds against scipy, and in closed form where there is one."""

import math

import numpy as np
import pytest
import scipy.stats

from mambaout_jax.ablation.statistics import (
    Estimate,
    holm,
    mean_and_error,
    paired,
    t_p_value,
    t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_students_t_is_that_of_scipy(degrees):
    for t in (0.0, 1e-3, 0.5, 1.0, 2.0, 4.3, 12.7, 100.0):
        expected = 2 * scipy.stats.t.sf(t, degrees)
        assert t_p_value(t, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-13)
        assert t_p_value(-t, degrees) == t_p_value(t, degrees)
    for probability in (0.01, 0.5, 0.9, 0.95, 0.999):
        expected = scipy.stats.t.ppf((1 + probability) / 2, degrees)
        assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)


def test_students_t_of_one_and_two_degrees_is_elementary():
    assert t_p_value(1.0, 1) == pytest.approx(1 / 2, abs=1e-15)  # Cauchy's distribution
    assert t_quantile(0.95, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_p_value(3.0, 2) == pytest.approx(1 - 3 / math.sqrt(11), abs=1e-15)
    assert round(t_quantile(0.95, 2), 3) == 4.303  # as printed in every table
    assert round(t_quantile(0.95, 4), 3) == 2.776
    assert t_p_value(math.inf, 3) == 0


def test_mean_and_error_are_those_of_the_sample():
    assert mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3, math.sqrt(7 / 3)))
    assert mean_and_error([2.0]) == pytest.approx((2, math.nan), nan_ok=True)
    assert isinstance(mean_and_error([2.0, 2.0]), Estimate)
    with pytest.raises(ValueError, match="there are no values to average"):
        mean_and_error([])


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_paired_is_the_paired_t_test_of_scipy(rng, count):
    a, b = rng.normal(98, 0.3, count), rng.normal(97.5, 0.3, count)
    expected = scipy.stats.ttest_rel(a, b)
    for confidence in (0.8, 0.95):
        found = paired(a.tolist(), b.tolist(), confidence)
        interval = expected.confidence_interval(confidence)
        assert found.difference == pytest.approx(np.mean(a - b), rel=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-9)
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
        swapped = paired(b.tolist(), a.tolist(), confidence)
        assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_an_interval_holds_the_truth_as_often_as_it_says(rng):
    noise = rng.normal(0, 1, (4000, 3))
    found = [paired(row, (0.0, 0.0, 0.0), 0.9) for row in noise.tolist()]
    assert sum(x.low < 0 < x.high for x in found) / 4000 == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ([0.5], [0.25], 0.25),
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([98.05, 97.49], [97.77, 97.21], 0.28),  # equal up to rounding
        ([math.nan, 1.0], [1.0, 2.0], math.nan),
    ],
)
def test_without_a_spread_there_is_no_interval(a, b, difference):
    expected = (difference, math.nan, math.nan, math.nan)
    assert paired(a, b) == pytest.approx(expected, nan_ok=True)


def test_values_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="there are no values"):
        paired([], [])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ((), ()),
        ((0.03,), (0.03,)),
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),  # 4 p, 3 p, 2 p, p, and rising
        ((0.5, 0.6), (1, 1)),
        ((0.02, math.nan, 0.04), (0.04, math.nan, 0.04)),
    ],
)
def test_holm_steps_down(p_values, expected):
    assert holm(p_values) == pytest.approx(expected, nan_ok=True)


def test_holm_rejects_what_its_definition_rejects(rng):
    for p_values in rng.beta(0.4, 3, (200, 5)):
        corrected = holm(p_values.tolist())
        order = np.argsort(p_values)
        for level in (0.01, 0.05, 0.3):
            rejected = []
            for rank, index in enumerate(order):
                if p_values[index] > level / (5 - rank):
                    break
                rejected.append(index)
            assert sorted(rejected) == [i for i, p in enumerate(corrected) if p <= level]
