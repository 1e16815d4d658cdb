# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison of dense models."""

import jax
import numpy as np
import pytest

from mambaout_jax.benchmarks.dense_inputs import make_inputs
from mambaout_jax.benchmarks.dense_models import OURS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "losses"),
    [
        ("detection", {"rpn_class", "rpn_box", "class", "box", "mask"}),
        ("segmentation", {"main", "auxiliary"}),
    ],
)
def test_our_side_infers_and_trains(task, losses):
    inputs = make_inputs(task, (64, 96), 1, "float32")
    ours = OURS[task]("test_mambaout", inputs)
    for passed in ("inference", "training"):
        call, plan = ours.calls(passed)
        found = jax.block_until_ready(call())
        assert plan["compile_seconds"] > 0
        if passed == "training":
            first = {name: float(value) for name, value in ours.losses.items()}
            call()
        elif task == "detection":
            assert found["boxes"].shape == (1, 100, 4)
        else:
            assert found.shape == (1, 64, 96)
    assert first.keys() == losses
    second = {name: float(value) for name, value in ours.losses.items()}
    assert sum(second.values()) < sum(first.values())
    outputs = ours.outputs()
    assert all(np.isfinite(x).all() and x.std() > 0 for x in outputs.values())
