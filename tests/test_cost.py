# SPDX-License-Identifier: Apache-2.0
"""Counts against closed forms and against published figures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mambaout_jax.analysis.cost import activation_bytes, count
from mambaout_jax.layers import Dense, DepthwiseConv, StridedConv
from mambaout_jax.models import create_model, find_variant, list_models

# timm's results table, 224 pixels, in G. It counts five operations for every normalised element.
PUBLISHED_GMACS = {
    "mambaout_femto": 1.16,
    "mambaout_kobe": 1.52,
    "mambaout_tiny": 4.49,
    "mambaout_small": 8.96,
    "mambaout_base": 15.83,
}


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = StridedConv(8, name="conv")(x)
        x = DepthwiseConv(5, name="depthwise")(x)
        x = Dense(10, name="dense")(x)
        return nn.Dense(4, name="flax_dense")(x)


def test_count_equals_the_closed_form():
    cost = count(Layers(), (9, 6, 3))
    pixels = 5 * 3  # stride 2, padded by one
    assert cost.macs == pixels * (9 * 3 * 8 + 25 * 8 + 8 * 10 + 10 * 4)
    assert cost.parameters == (9 * 3 * 8 + 8) + (25 * 8 + 8) + (8 * 10 + 10) + (10 * 4 + 4)


@pytest.mark.parametrize("name", list_models())
def test_table_of_variants_is_what_is_counted(name):
    _, variant = find_variant(name)
    assert count(create_model(name), (224, 224, 3)) == (variant.parameters, variant.macs)


@pytest.mark.parametrize("name", sorted(PUBLISHED_GMACS))
def test_macs_are_the_published_ones(name):
    normalised = 0

    def count_norms(next_function, args, kwargs, context):
        nonlocal normalised
        if isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__":
            normalised += args[0].size
        return next_function(*args, **kwargs)

    model = create_model(name)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with nn.intercept_methods(count_norms):
        jax.eval_shape(model.init, jax.random.key(0), image)
    macs = count(model, (224, 224, 3)).macs
    assert round((macs + 5 * normalised) / 1e9, 2) == PUBLISHED_GMACS[name]


def test_count_wants_three_axes():
    with pytest.raises(ValueError, match=r"\(1, 32, 32, 3\) must be \(H, W, C\)"):
        count(Layers(), (1, 32, 32, 3))


class OneDense(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(7, use_bias=False, name="dense")(x.reshape(x.shape[0], -1))


def test_activation_bytes_are_the_inputs_of_a_linear_layer():
    # The gradient of x @ w by w needs x, and nothing else.
    assert activation_bytes(OneDense(), (4, 4, 3), batch_size=5) == 5 * 48 * 4


def test_activation_bytes_grow_with_the_batch_and_shrink_with_remat():
    small = create_model("test_mambaout")
    kept = activation_bytes(small, (64, 64, 3), 4)
    assert activation_bytes(small, (64, 64, 3), 8) == pytest.approx(2 * kept, rel=0.02)
    assert activation_bytes(create_model("test_mambaout", remat=True), (64, 64, 3), 4) < 0.5 * kept
