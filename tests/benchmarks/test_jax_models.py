# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison of whole models, on a golden's weights."""

import jax
import numpy as np
import pytest
from goldens.fill import input_of
from support.goldens import load
from support.places import GOLDENS

from mambaout_jax.benchmarks import jax_models
from mambaout_jax.benchmarks.jax_models import Ours, has_scan

NAME = "test_mambaout"


@pytest.fixture(scope="module")
def golden():
    """Images, logits and weights of timm's model."""
    arrays, meta, state_dict = load(GOLDENS / "mambaout" / f"{NAME}.npz")
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), arrays["output"], state_dict


@pytest.fixture(scope="module")
def ours(golden):
    images, _, state_dict = golden
    return Ours(NAME, images, np.arange(len(images)), "float32", state_dict=state_dict)


def plan():
    return {"compile_seconds": {}, "temp_bytes": {}}


def test_inference_computes_the_logits_of_timm(ours, golden):
    planned = plan()
    calls = ours.calls("inference", planned)
    assert list(calls) == list(ours.logits) == ["ours"]
    for logits in (calls["ours"](), ours.logits["ours"]):
        assert np.abs(logits - golden[1]).max() <= 1e-4 * golden[1].std()
    assert planned["compile_seconds"]["ours"] > 0
    assert planned["temp_bytes"]["ours"] > 0


@pytest.mark.slow
def test_training_step_is_adamw(ours):
    # Adam's first update is the sign of the gradient, whatever its size.
    before = jax.device_get(ours._variables)
    after, rest, _ = ours.calls("training", plan())["ours"]()
    assert rest == {}
    kernel, moved = (
        tree["head"]["classifier"]["kernel"] for tree in (before["params"], jax.device_get(after))
    )
    steps = moved - kernel * (1 - jax_models.LEARNING_RATE * jax_models.WEIGHT_DECAY)
    assert np.median(np.abs(steps)) == pytest.approx(jax_models.LEARNING_RATE, rel=0.01)
    again = jax.device_get(ours._variables)
    jax.tree.map(np.testing.assert_array_equal, again, before)  # the next race starts from these


@pytest.mark.slow
def test_statistics_of_batch_norm_move_and_the_step_can_be_repeated():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    ours = Ours("fasternet_t1", images, np.arange(2), "float32")
    train = ours.calls("training", plan())["ours"]
    before = jax.device_get(ours._variables["batch_stats"])
    train()
    _, rest, _ = train()
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, rest["batch_stats"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_scans_take_part_on_the_same_weights_with_their_own_memory():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    ours = Ours("mambaout_micro_ssm", images, np.arange(2), "float32", scans=["associative"])
    alike, other = ours.logits.values()
    assert np.abs(alike - other).max() <= 1e-4 * alike.std()
    planned = plan()
    calls = ours.calls("training", planned)
    assert list(calls) == ["ours", "ours, associative"]
    assert planned["temp_bytes"]["ours, associative"] > planned["temp_bytes"]["ours"] > 0
    steps = [jax.device_get(call()[0]) for call in calls.values()]
    kernels = [tree["head"]["classifier"]["kernel"] for tree in steps]
    assert np.median(np.abs(kernels[0] - kernels[1])) < 1e-6  # donated buffers are not shared


@pytest.mark.parametrize(
    ("name", "expected"), [("mambaout_micro", False), ("mambaout_micro_ssm", True)]
)
def test_models_with_a_scan_are_known(name, expected):
    assert has_scan(name, 32) is expected
