# SPDX-License-Identifier: Apache-2.0
"""The evaluation step: every example counts once, whatever the padding."""

import jax
import numpy as np
import pytest
from support.small_steps import (
    CLASSES,
    Linear,
    assert_equal,
    make_batches,
    make_config,
    make_mesh,
    shardings_of,
    task_of,
)

from mambaout_jax.evaluation.evaluator import make_evaluate_step
from mambaout_jax.runtime.mesh import put_batch


def linear_sums(variables, batch):
    """Loss, hits and count of `Linear` over the unmasked examples, in float64."""
    dense = variables["params"]["dense"]
    x = (batch["image"].reshape(len(batch["image"]), -1) / 255 - 0.4) / 0.3
    logits = x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64)
    labels, mask = batch["label"], batch["mask"]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    order = np.argsort(-logits, axis=-1)
    return {
        "loss": losses[mask].sum(),
        "top1": (order[:, 0] == labels)[mask].sum(),
        "top5": (order[:, :5] == labels[:, None]).any(-1)[mask].sum(),
        "count": mask.sum(),
    }


@pytest.fixture(scope="module")
def evaluation():
    """A step on a mesh, variables split over it, and 37 examples."""
    mesh, config = make_mesh(2, 4), make_config()
    rng = np.random.default_rng(3)
    dense = {"kernel": rng.normal(0, 0.1, (256, CLASSES)), "bias": rng.normal(0, 1, CLASSES)}
    variables = {"params": {"dense": {k: v.astype(np.float32) for k, v in dense.items()}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mambaout_jax.runtime.mesh._MIN_SHARDED_SIZE", 64)
        split = jax.tree.map(jax.device_put, variables, shardings_of(variables, mesh))
    assert not split["params"]["dense"]["kernel"].is_fully_replicated
    step = make_evaluate_step(Linear(), task_of(config), mesh)
    (examples,) = make_batches(1, 37)
    examples |= {"mask": np.ones(37, bool), "index": np.arange(37, dtype=np.int32)}

    def sums(batch):
        return jax.device_get(step(split, put_batch(batch, mesh))["sums"])

    return sums, variables, examples


def padded(examples, size, image=0, label=0):
    fill = size - len(examples["label"])
    return {
        "image": np.pad(examples["image"], ((0, fill), *((0, 0),) * 3), constant_values=image),
        "label": np.pad(examples["label"], (0, fill), constant_values=label),
        "mask": np.pad(examples["mask"], (0, fill)),
        "index": np.pad(examples["index"], (0, fill)),
    }


def test_evaluation_of_padded_batches_counts_every_example_once(evaluation):
    step, variables, examples = evaluation
    parts = [{name: x[i : i + 16] for name, x in examples.items()} for i in (0, 16, 32)]
    sums = [step(padded(part, 16)) for part in parts]
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    assert total == pytest.approx(linear_sums(variables, examples), rel=1e-5)
    assert total["count"] == 37


def test_evaluation_reads_nothing_of_masked_examples(evaluation):
    step, variables, examples = evaluation
    part = {name: x[:11] for name, x in examples.items()}
    black, white = step(padded(part, 16)), step(padded(part, 16, image=255, label=9))
    assert_equal(black, white)
    assert black == pytest.approx(linear_sums(variables, part), rel=1e-5)

    hole = {**padded(part, 16), "mask": np.arange(16) % 3 == 0}
    assert step(hole) == pytest.approx(linear_sums(variables, hole), rel=1e-5)


def test_evaluation_of_nothing_is_nothing(evaluation):
    step, _, examples = evaluation
    part = {name: x[:16] for name, x in examples.items()}
    sums = step({**part, "mask": np.zeros(16, bool)})
    assert sums == {"loss": 0, "top1": 0, "top5": 0, "count": 0}
