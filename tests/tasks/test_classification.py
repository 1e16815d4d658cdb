# SPDX-License-Identifier: Apache-2.0
"""Loss and metric sums against float64 numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.tasks.classification import Classification, predict, soft_targets


class Passthrough(nn.Module):
    """Images are their own logits, times a parameter."""

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return images.reshape(images.shape[0], -1) * scale


VARIABLES = {"params": {"scale": jnp.ones(())}}


def log_softmax(x):
    return (
        x
        - x.max(-1, keepdims=True)
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


@pytest.fixture
def logits(rng):
    return rng.standard_normal((9, 7), np.float32)


def test_soft_targets_spread_the_smoothing():
    targets = soft_targets(jnp.asarray([2, 0]), 4, 0.2)
    np.testing.assert_allclose(
        targets, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6
    )


def test_loss_is_the_cross_entropy_against_soft_targets(logits, rng):
    targets = rng.dirichlet(np.ones(7), 9).astype(np.float32)
    batch = {"image": jnp.asarray(logits)[:, None, None], "target": jnp.asarray(targets)}
    loss, (_, sums) = Classification(7).loss(
        Passthrough(), VARIABLES["params"], {}, batch, jax.random.key(0)
    )
    each = -(targets.astype(np.float64) * log_softmax(logits.astype(np.float64))).sum(-1)
    assert float(loss) == pytest.approx(each.mean(), rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(each.sum(), rel=1e-6)
    assert float(sums["count"]) == 9


def test_evaluation_counts_masked_examples_not_at_all(logits, rng):
    labels = rng.integers(0, 7, 9)
    mask = np.asarray([1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
    batch = {
        "image": jnp.asarray(logits)[:, None, None],
        "label": jnp.asarray(labels, jnp.int32),
        "mask": jnp.asarray(mask),
    }
    task = Classification(7)
    sums = task.evaluate(Passthrough(), VARIABLES, batch)
    order = np.argsort(-logits, axis=-1)
    top1 = (order[:, 0] == labels)[mask].sum()
    top5 = (order[:, :5] == labels[:, None]).any(-1)[mask].sum()
    loss = -log_softmax(logits.astype(np.float64))[np.arange(9), labels][mask].sum()
    assert (float(sums["top1"]), float(sums["top5"]), float(sums["count"])) == (top1, top5, 7)
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-6)
    metrics = task.metrics({name: float(value) for name, value in sums.items()})
    assert metrics == pytest.approx(
        {"loss": loss / 7, "top1": 100 * top1 / 7, "top5": 100 * top5 / 7}
    )


def test_a_constant_output_is_no_hit_for_every_class():
    batch = {
        "image": jnp.zeros((7, 1, 1, 7)),
        "label": jnp.arange(7),
        "mask": jnp.ones(7, bool),
    }
    sums = Classification(7).evaluate(Passthrough(), VARIABLES, batch)
    assert (float(sums["top1"]), float(sums["top5"])) == (1, 5)


def test_nan_outputs_are_no_hits():
    batch = {"image": jnp.full((3, 1, 1, 7), jnp.nan), "label": jnp.arange(3),
             "mask": jnp.ones(3, bool)}  # fmt: skip
    sums = Classification(7).evaluate(Passthrough(), VARIABLES, batch)
    assert float(sums["top1"]) == 0


def test_predict_gives_probabilities(logits):
    probabilities = predict(Passthrough(), VARIABLES, logits[:, None, None])
    exact = np.exp(log_softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(probabilities, exact, rtol=1e-5)
