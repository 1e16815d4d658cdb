# SPDX-License-Identifier: Apache-2.0
"""What is said of weights that do not fit: all of it at once."""

import numpy as np
import pytest

from mambaout_jax.weights.mismatch import check_floating, check_names


def test_all_that_does_not_fit_is_listed():
    wanted = {"a": (2,), "b": (3, 4), "c": ()}
    check_names("model", "timm", wanted, dict(wanted))
    with pytest.raises(ValueError, match="these weights are not those") as error:
        check_names("model", "timm", wanted, {"a": (2,), "b": (4, 3), "d": (1,)})
    assert str(error.value).split("\n") == [
        "these weights are not those of model in timm naming",
        "  missing, the model has them and the weights do not (1): c",
        "  unexpected, the weights have them and the model does not (1): d",
        "  wrong shape (1): b (the model has (3, 4), the weights have (4, 3))",
        "check the model's name, num_classes, in_chans and options",
    ]


def test_whole_numbers_are_no_parameters():
    check_floating("model", {"a": np.zeros(2, np.float16)})
    with pytest.raises(ValueError, match=r"have others: b \(int8\); cast them"):
        check_floating("model", {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.int8)})
