# SPDX-License-Identifier: Apache-2.0
"""Loss, partial results and findings of classification against float64 numpy."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mambaout_jax.config import default_config
from mambaout_jax.models import create_model
from mambaout_jax.tasks.classification import Classification, predict, soft_targets
from mambaout_jax.tasks.task import Score

NAMES = tuple("abcdefg")


class Passthrough(nn.Module):
    """Images are their own logits, times a parameter."""

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return images.reshape(images.shape[0], math.prod(images.shape[1:])) * scale


VARIABLES = {"params": {"scale": jnp.ones(())}}


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture
def logits(rng):
    return rng.standard_normal((9, 7), np.float32)


TASK = Classification(default_config(), NAMES)
evaluate = jax.jit(functools.partial(TASK.evaluate, Passthrough()))  # one program for all tests


def evaluated(logits, labels, mask, competing=None):
    """The partial result where the model's outputs are these."""
    right = np.eye(7, dtype=bool)[labels]
    batch = {
        "image": logits[:, None, None],
        "right": right,
        "competing": np.ones_like(right) if competing is None else competing,
        "index": np.arange(9),
        "mask": mask,
    }
    return jax.device_get(evaluate(VARIABLES, jax.tree.map(jnp.asarray, batch)))


def test_soft_targets_spread_the_smoothing():
    targets = soft_targets(jnp.asarray([2, 0]), 4, 0.2)
    np.testing.assert_allclose(
        targets, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6
    )


def test_loss_is_the_cross_entropy_against_soft_targets(logits, rng):
    targets = rng.dirichlet(np.ones(7), 9).astype(np.float32)
    batch = {"image": jnp.asarray(logits)[:, None, None], "target": jnp.asarray(targets)}
    loss, (_, sums) = TASK.loss(Passthrough(), VARIABLES["params"], {}, batch, jax.random.key(0))
    each = -(targets.astype(np.float64) * log_softmax(logits.astype(np.float64))).sum(-1)
    assert float(loss) == pytest.approx(each.mean(), rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(each.sum(), rel=1e-6)
    assert float(sums["count"]) == 9


def test_evaluation_counts_masked_examples_not_at_all(logits, rng):
    labels = rng.integers(0, 7, 9)
    mask = np.asarray([1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
    partial = evaluated(logits, labels, mask)
    order = np.argsort(-logits, axis=-1)
    top1 = (order[:, 0] == labels)[mask].sum()
    top5 = (order[:, :5] == labels[:, None]).any(-1)[mask].sum()
    loss = -log_softmax(logits.astype(np.float64))[np.arange(9), labels][mask].sum()
    assert partial["sums"] == {
        "loss": pytest.approx(loss, rel=1e-6), "top1": top1, "top5": top5, "count": 7
    }  # fmt: skip
    assert TASK.metrics(partial) == pytest.approx(
        {"loss": loss / 7, "top1": 100 * top1 / 7, "top5": 100 * top5 / 7}
    )
    assert TASK.score() == Score("top1", "points", higher_is_better=True)
    assert partial["examples"]["index"].tolist() == [0, 1, -1, 3, 4, -1, 6, 7, 8]


def test_mistakes_are_the_wrong_examples_the_surest_first(logits, rng):
    labels, mask = rng.integers(0, 7, 9), np.arange(9) != 4
    halves = [
        evaluated(logits, labels, mask & part) for part in (np.arange(9) > 5, np.arange(9) <= 5)
    ]
    partial = TASK.merge(halves)
    probabilities = np.exp(log_softmax(logits.astype(np.float64)))
    guesses = probabilities.argmax(-1)
    wrong = [i for i in range(9) if mask[i] and guesses[i] != labels[i]]
    wrong.sort(key=lambda i: -probabilities[i].max())
    found = TASK.mistakes(partial)
    assert [row[:3] for row in found] == [(i, labels[i], guesses[i]) for i in wrong]
    np.testing.assert_allclose([row[3] for row in found], probabilities[wrong].max(-1), rtol=1e-5)
    assert partial["sums"]["count"] == 8


def test_only_competing_classes_are_guessed():
    logits = np.tile(np.float32([3, 2, 1, 0, 0, 0, 0]), (9, 1))
    competing = np.tile([False, True, True, False, False, False, False], (9, 1))
    examples = evaluated(logits, np.full(9, 2), np.ones(9, bool), competing)["examples"]
    assert (examples["guess"][0], examples["label"][0]) == (1, 2)
    assert examples["probability"][0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_answers_that_a_batch_brings_replace_its_label():
    config = default_config()
    task = Classification(config, NAMES)
    images = jnp.zeros((1, 2, 2, 3), jnp.uint8)
    right = jnp.eye(7, dtype=bool)[jnp.asarray([3])]
    batch = {"image": images, "right": right, "competing": ~right}
    prepared = task.prepare(batch, None)
    np.testing.assert_array_equal(prepared["right"], right)
    np.testing.assert_array_equal(prepared["competing"], ~right)
    prepared = task.prepare({"image": images, "label": jnp.asarray([3])}, None)
    np.testing.assert_array_equal(prepared["right"], right)
    assert prepared["competing"].all()
    mean, std = np.asarray(config.data.mean), np.asarray(config.data.std)
    np.testing.assert_allclose(prepared["image"][0, 0, 0], -mean / std, rtol=1e-6)


def test_predict_gives_probabilities(logits):
    probabilities = predict(Passthrough(), VARIABLES, logits[:, None, None])
    exact = np.exp(log_softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(probabilities, exact, rtol=1e-5)


def test_predict_takes_no_images_and_no_single_one(logits, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a single image has rank 3
    assert predict(Passthrough(), VARIABLES, logits[:0, None, None]).shape == (0, logits.shape[-1])
    model = create_model("mambaout_micro", num_classes=5, depths=(1, 1), dims=(8, 16))

    def probabilities(images):
        return predict(model, model.init(jax.random.key(0), images[:1]), images[:0])

    assert jax.eval_shape(probabilities, jnp.zeros((2, 16, 16, 3))).shape == (0, 5)
    with pytest.raises(ValueError, match=r"images are \(1, 1, \d\); give .* as image\[None\]"):
        predict(Passthrough(), VARIABLES, logits[0, None, None])


def test_findings_are_the_likeliest_classes():
    output = np.array([0.1, 0.3, 0.05, 0.3, 0.05, 0.1, 0.1])
    assert [(found["name"], found["probability"]) for found in TASK.findings(output, 3)] == [
        ("b", 0.3), ("d", 0.3), ("a", 0.1)
    ]  # fmt: skip
