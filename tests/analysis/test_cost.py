# SPDX-License-Identifier: Apache-2.0
"""Counts against closed forms and against published figures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mambaout_jax.analysis.cost import (
    activation_bytes,
    block_flops,
    count,
    count_by_formula,
    length_ratio,
)
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.mixers.mamba import MambaMixer
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ssm import MapSSM
from mambaout_jax.models import create_model

# timm's results table, 224 pixels, in G. It counts five operations for every normalised element.
PUBLISHED_GMACS = {
    "mambaout_femto": 1.16,
    "mambaout_kobe": 1.52,
    "mambaout_tiny": 4.49,
    "mambaout_small": 8.96,
    "mambaout_base": 15.83,
    "deit_tiny_patch16_224": 1.26,
    "deit_small_patch16_224": 4.61,
    "deit_base_patch16_224": 17.58,
}


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Conv(8, 3, 2, 1, name="conv")(x)
        x = DepthwiseConv(5, name="depthwise")(x)
        x = Dense(10, name="dense")(x)
        return nn.Dense(4, name="flax_dense")(x)


def test_count_equals_the_closed_form():
    cost = count(Layers(), (9, 6, 3))
    pixels = 5 * 3  # stride 2, padded by one
    assert cost.macs == pixels * (9 * 3 * 8 + 25 * 8 + 8 * 10 + 10 * 4)
    assert cost.parameters == (9 * 3 * 8 + 8) + (25 * 8 + 8) + (8 * 10 + 10) + (10 * 4 + 4)


def published(name):
    """The smallest of each family by default: the others differ in their tables of sizes alone."""
    smallest = name in ("mambaout_femto", "deit_tiny_patch16_224")
    return pytest.param(name, marks=() if smallest else pytest.mark.goldens)


@pytest.mark.parametrize("name", [published(name) for name in sorted(PUBLISHED_GMACS)])
def test_macs_are_the_published_ones(name):
    normalised = 0

    def count_norms(next_function, args, kwargs, context):
        nonlocal normalised
        if isinstance(context.module, LayerNorm) and context.method_name == "__call__":
            normalised += args[0].size
        return next_function(*args, **kwargs)

    model = create_model(name)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with nn.intercept_methods(count_norms):
        jax.eval_shape(model.init, jax.random.key(0), image)
    macs = count(model, (224, 224, 3)).macs
    assert round((macs + 5 * normalised) / 1e9, 2) == PUBLISHED_GMACS[name]


class Tokens(nn.Module):
    causal: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(1, -1, x.shape[-1])
        return MultiHeadSelfAttention(3, self.causal, name="attention")(x)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_its_projections_and_both_products_of_all_pairs(causal):
    length, channels = 5 * 4, 6
    projections = length * channels * 4 * channels
    products = 2 * length**2 * channels
    cost = count(Tokens(causal), (5, 4, 6))
    assert cost == (4 * channels * channels + 4 * channels, projections + products)


@pytest.mark.parametrize("side", [32, 224, 1024])
def test_a_transformer_block_costs_what_equation_6_of_the_paper_says(side):
    # FLOPs = 24 D² L + 4 D L², two for each multiply-accumulate.
    dim, length = 192, (side // 16) ** 2 + 1
    one, two = (
        count(create_model("deit_tiny_patch16_224", depth=depth), (side, side, 3)).macs
        for depth in (1, 2)
    )
    assert 2 * (two - one) == 24 * dim**2 * length + 4 * dim * length**2
    # The paper's measure of a long sequence, L > 6 D: attention outweighs what is linear in L.
    assert (4 * dim * length**2 > 24 * dim**2 * length) == (length > 6 * dim) == (side == 1024)


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


@pytest.mark.slow
def test_activation_bytes_grow_with_the_batch_and_shrink_with_remat():
    small = create_model("test_mambaout")
    # Parts of weights are kept too, whatever the batch.
    eight, sixteen, more = (activation_bytes(small, (64, 64, 3), n) for n in (8, 16, 24))
    assert more - sixteen == pytest.approx(sixteen - eight, rel=1e-3)
    assert sixteen == pytest.approx(2 * eight, rel=0.06)
    kept = activation_bytes(small, (64, 64, 3), 4)
    assert activation_bytes(create_model("test_mambaout", remat=True), (64, 64, 3), 4) < 0.5 * kept


class MambaTokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return MambaMixer(expand=2, kernel_size=4, state_size=3, name="mixer")(
            x.reshape(1, -1, x.shape[-1])
        )


def test_mamba_mixer_counts_projections_convolution_scan_and_gate():
    L, C, N, R = 12, 32, 3, 2
    D = 2 * C
    projections = L * (C * 2 * D + D * (R + 2 * N) + R * D + D * C)
    scan = 9 * L * D * N + L * D + L * D  # recurrence, skip, gate
    parameters = 2 * C * D + 5 * D + D * (R + 2 * N) + (R * D + D) + D * N + D + D * C
    assert count(MambaTokens(), (3, 4, C)) == (parameters, projections + 4 * L * D + scan)


@pytest.mark.parametrize(("routes", "paths"), [("raster", 1), ("bidirectional", 2), ("cross", 4)])
def test_scans_are_counted_by_both_formulas(routes, paths):
    L, D, N, R = 6 * 5, 8, 4, 3
    module = MapSSM(paths_of(routes), state_size=N, dt_rank=R)
    projections = L * (D * (R + 2 * N) + R * D)
    parallel = paths * (projections + 9 * L * D * N + L * D)
    assert count(module, (6, 5, D)).macs == parallel
    # LocalMamba's code counts the projections of one direction only.
    by_hand = projections + paths * (5 * L * D * N + 2 * L * D)
    assert count(module, (6, 5, D), scan_formula="hand").macs == by_hand
    both = count_by_formula(module, (6, 5, D))
    assert {formula: cost.macs for formula, cost in both.items()} == {
        "parallel": parallel, "hand": by_hand,
    }  # fmt: skip


def test_equation_6_and_the_papers_thresholds():
    assert block_flops(196, 384) == 24 * 384**2 * 196 + 4 * 384 * 196**2
    assert length_ratio(2304, 384) == length_ratio(4608, 768) == 1
    assert length_ratio(196, 384) < 0.1  # ImageNet is short
    assert length_ratio(4000, 384) > 1.7  # COCO and ADE20K are long


def test_unknown_scan_formula_is_an_error():
    with pytest.raises(ValueError, match="scan_formula='9' is not known; allowed are parallel, ha"):
        count(Layers(), (32, 32, 3), scan_formula="9")


class Unknown(nn.Module):
    @nn.compact
    def __call__(self, x):
        table = self.param("table", nn.initializers.ones, (3, 5))
        return nn.Dense(2, name="dense")(x @ table)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Unknown(name="inner")(x)


def test_parameters_whose_cost_nobody_states_are_an_error():
    with pytest.raises(ValueError, match=r"of Unknown, whose parameters are at \['inner'\]; give"):
        count(Model(), (4, 4, 3))


class OnTokens(nn.Module):
    """Calls a layer on the pixels as tokens (1, L, C), also by the names of its arguments."""

    layer: nn.Module
    names: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x):
        x = x.reshape(1, -1, x.shape[-1])
        named = dict.fromkeys(self.names, x[:, :3])
        return self.layer(**{"inputs": x} if not named else {"inputs_q": x, **named})


L, C = 5 * 4, 6  # of an input of 5 x 4 pixels with 6 channels


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.ConvTranspose(7, (3, 2), (2, 2)), L * C * 6 * 7),
        (nn.ConvLocal(7, (3, 3), padding="VALID"), 3 * 2 * 9 * C * 7),
        (nn.Conv(4, (3, 3), feature_group_count=2), L * 9 * (C // 2) * 4),
        (nn.DenseGeneral((2, 3)), L * C * 6),
        (nn.DenseGeneral(7, axis=(-2, -1)), 5 * 4 * C * 7),
        (nn.Einsum((C, 2, 3), "...c,chd->...hd"), L * C * 6),
        (nn.MultiHeadDotProductAttention(2), 4 * L * C * C + 2 * L * L * C),
        (OnTokens(nn.Dense(3)), L * C * 3),
        (OnTokens(nn.MultiHeadAttention(2), ("inputs_k", "inputs_v")),
         2 * L * C * C + 2 * 3 * C * C + 2 * L * 3 * C),
        (OnTokens(nn.RNN(nn.SimpleCell(7))), L * (C * 7 + 7 * 7)),
    ],
)  # fmt: skip
def test_layers_of_flax_have_their_closed_forms(layer, macs):
    tokens = isinstance(layer, nn.MultiHeadDotProductAttention)
    assert count(layer, (1, L, C) if tokens else (5, 4, C)).macs == macs


class Deep(nn.Module):
    """Linear layers of 5 channels, lifted."""

    lift: str
    shared: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, use_bias=False, name="first")(x.mean(axis=(1, 2)))  # (1, 5)
        axes = {"params": None if self.shared else 0}
        split = {"params": not self.shared}
        if self.lift == "vmap":
            many = nn.vmap(
                nn.Dense, variable_axes=axes, split_rngs=split, in_axes=None, axis_size=4
            )
            return many(5, use_bias=False)(x)
        if self.lift == "remat":
            return nn.remat(nn.Dense)(5, use_bias=False)(x)
        if self.lift == "jit":
            layer = nn.jit(nn.Dense)
            return layer(5, use_bias=False)(layer(5, use_bias=False)(x))

        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(5, use_bias=False)(x), None

        over = {"variable_broadcast": "params"} if self.shared else {"variable_axes": axes}
        return nn.scan(Body, **over, split_rngs=split, length=4)()(x, None)


@pytest.mark.parametrize(
    ("module", "times"),
    [
        (Deep("scan"), 4),
        (Deep("scan", shared=True), 4),
        (Deep("vmap"), 4),
        (Deep("remat"), 1),
    ],
)
def test_lifted_modules_are_counted_as_often_as_they_run(module, times):
    assert count(module, (2, 2, 3)).macs == 3 * 5 + times * 5 * 5


def test_module_that_is_not_traced_again_is_an_error():
    with pytest.raises(ValueError, match=r"of a module that nn\.jit has traced before, whose"):
        count(Deep("jit"), (2, 2, 3))


def test_module_without_parameters_costs_nothing():
    assert count(nn.Sequential([lambda x: x.mean(axis=(1, 2))]), (4, 4, 3)) == (0, 0)
