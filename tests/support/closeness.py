# SPDX-License-Identifier: Apache-2.0
"""How close a result in a narrow dtype has to be to its float64 oracle."""

import numpy as np


def assert_close(actual, expected, epsilon, rounding=0.0):
    """Within epsilon of the largest value, plus one rounding of the result itself (relative)."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    largest = np.abs(expected).max(initial=0.0)
    assert np.all(np.abs(actual - expected) <= epsilon * largest + rounding * np.abs(expected))
