# SPDX-License-Identifier: Apache-2.0
"""The heads that families share, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import gelu
from support.variables import randomised

from mambaout_jax.backbone import Features
from mambaout_jax.heads.classifier import HiddenHead, PooledHead, TokenHead


def norm(p, x, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def pooled_first(p, maps, token):
    return norm(p["norm"], maps[-1].mean((1, 2)))


def norm_first(p, maps, token):
    return norm(p["norm"], maps[-1], 1e-2).mean((1, 2))


def of_token(p, maps, token):
    return norm(p["norm"], token)


def hidden(p, maps, token):
    x = gelu(linear(p["hidden"], norm(p["norm"], maps[-1].mean((1, 2)))))
    return norm(p["hidden_norm"], x)


def hidden_without_norm(p, maps, token):
    return gelu(linear(p["hidden"], norm(p["norm"], maps[-1].mean((1, 2)))))


@pytest.mark.parametrize(
    ("head", "read"),
    [
        (PooledHead(3), pooled_first),
        (PooledHead(3, norm_first=True, epsilon=1e-2), norm_first),
        (TokenHead(3), of_token),
        (HiddenHead(3), hidden),
        (HiddenHead(3, hidden_norm=False), hidden_without_norm),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_head_equals_numpy_with_and_without_classes(rng, head, read):
    maps = rng.standard_normal((2, 4, 5, 8)), rng.standard_normal((2, 2, 3, 6))
    token = rng.standard_normal((2, 6))
    features = Features(tuple(jnp.asarray(x, jnp.float32) for x in maps), jnp.float32(token))
    variables = randomised(head, features)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    expected = read(p, maps, token)
    logits = head.apply(variables, features)
    np.testing.assert_allclose(logits, linear(p["classifier"], expected), rtol=2e-5, atol=2e-5)
    del variables["params"]["classifier"]
    without = head.clone(num_classes=0).apply(variables, features)
    np.testing.assert_allclose(without, expected, rtol=2e-5, atol=2e-5)


def test_dropout_acts_in_training_only(rng):
    features = Features((jnp.asarray(rng.standard_normal((2, 2, 3, 6)), jnp.float32),))
    head = HiddenHead(3, dropout=0.5)
    variables = randomised(head, features)
    evaluated = head.apply(variables, features)
    np.testing.assert_array_equal(evaluated, HiddenHead(3).apply(variables, features))
    keys = {"dropout": jax.random.key(0)}
    assert np.abs(head.apply(variables, features, True, rngs=keys) - evaluated).max() > 1e-3
