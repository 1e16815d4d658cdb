# SPDX-License-Identifier: Apache-2.0
"""Models in programs of Flax NNX: `bridge.ToNNX` wraps one with its variables."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict
from support.small import IMAGE, small_options

from mambaout_jax.models import create_model

NAME = "fasternet_t1"  # it has batch statistics beside its parameters


def linen_variables(wrapped):
    """What a wrapped model holds, as `apply` takes it."""
    collections = {"Param": {}, "BatchStat": {}}
    for path, variable in nnx.to_flat_state(nnx.state(wrapped)):
        collections.get(type(variable).__name__, {})[path] = variable[...]
    names = {"params": "Param", "batch_stats": "BatchStat"}
    return {name: unflatten_dict(collections[kind]) for name, kind in names.items()}


@pytest.mark.slow
def test_a_wrapped_model_computes_the_same_and_trains(rng):
    model = create_model(NAME, **small_options(NAME))
    images = jnp.asarray(rng.standard_normal((4, *IMAGE[1:]), np.float32))
    wrapped = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images)
    before = linen_variables(wrapped)
    np.testing.assert_allclose(wrapped(images), model.apply(before, images), atol=1e-6)

    @nnx.jit
    def update(wrapped, optimizer):
        def loss(wrapped):
            logits = wrapped(images, train=True, rngs=nnx.Rngs(dropout=0), mutable=["batch_stats"])
            labels = jnp.arange(4) % 3
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(wrapped)
        optimizer.update(wrapped, gradients)
        return value

    optimizer = nnx.Optimizer(wrapped, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(update(wrapped, optimizer)) for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
    # The statistics have followed, and the trained model still computes what linen computes.
    after = linen_variables(wrapped)
    mean = ("batch_stats", "backbone", "patch_embed", "norm", "mean")
    moved = [tree[mean[0]][mean[1]][mean[2]][mean[3]][mean[4]] for tree in (before, after)]
    assert np.abs(moved[1] - moved[0]).max() > 1e-3
    np.testing.assert_allclose(wrapped(images), model.apply(after, images), atol=1e-5)
