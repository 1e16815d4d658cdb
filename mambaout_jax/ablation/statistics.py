# SPDX-License-Identifier: Apache-2.0
"""What a few seeds show: means with their errors, paired differences, many comparisons at once.

Runs with the same seed see the same examples in the same order, whatever the model, so models are
compared seed by seed: Student's t on the differences. With n seeds it has n - 1 degrees of freedom,
a whole number, for which its distribution is a finite sum (Abramowitz and Stegun, Handbook of
Mathematical Functions, 26.7.3 and 26.7.4).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """Attributes:
    mean: of the values.
    error: the standard error of the mean, NaN for a single value.
    """

    mean: float
    error: float


class Paired(NamedTuple):
    """A mean difference, and what is known of it.

    Attributes:
        difference: mean of the differences.
        low, high: its interval of confidence.
        p_value: of a difference at least as large, in either direction, where there is none.
    """

    difference: float
    low: float
    high: float
    p_value: float


def mean_and_error(values: Sequence[float]) -> Estimate:
    """The mean of values and its standard error.

    Raises:
        ValueError: there are no values.
    """
    count = len(values)
    if not count:
        raise ValueError("there are no values to average")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count))


def paired(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Paired:
    """The mean of a - b with its interval and the p value of the paired t test.

    Args:
        a, b: values of two contenders, in the same order of their seeds.
        confidence: probability of the interval, between 0 and 1.

    Returns:
        NaN for interval and p value where the differences have no spread, so that their error
        cannot be estimated: of a single pair, or all equal up to rounding.

    Raises:
        ValueError: there are no pairs, or a value has no partner.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    mean, error = mean_and_error([x - y for x, y in zip(a, b, strict=True)])
    rounding = 1e-14 * max(map(abs, (*a, *b)))
    if not error > rounding:
        return Paired(mean, math.nan, math.nan, math.nan)
    degrees = len(a) - 1
    reach = error * t_quantile(confidence, degrees)
    return Paired(mean, mean - reach, mean + reach, t_p_value(mean / error, degrees))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p values corrected for their number (Holm 1979, step-down).

    Where those below a level are called differences, the chance that any is wrongly called so is at
    most that level. NaN stays NaN and counts for none.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return tuple(corrected)


def t_p_value(t: float, degrees: int) -> float:
    """The probability that Student's t is at least as far from 0 as `t`; absolute error 1e-14.

    Args:
        degrees: degrees of freedom, from 1.
    """
    return max(0.0, 1 - _within(math.atan(abs(t) / math.sqrt(degrees)), degrees))


def t_quantile(probability: float, degrees: int) -> float:
    """The bound that Student's t stays below with a probability, by its absolute value.

    Args:
        probability: between 0 and 1.
        degrees: degrees of freedom, from 1.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _within(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(high)


def _within(angle: float, degrees: int) -> float:
    """P(|T| < t) for tan(angle) = t / sqrt(degrees)."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for j in range(1, degrees // 2 + 1):
        total += term
        term *= (2 * j - 1 + odd) / (2 * j + odd) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
