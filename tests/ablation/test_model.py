# SPDX-License-Identifier: Apache-2.0
"""The model of the grid: MambaOut's block, mixers that see what they may, equal MACs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ablation.model import MIXERS, TokenModel, encode, rescale
from mambaout_jax.analysis.cost import count
from mambaout_jax.models import create_backbone
from mambaout_jax.models.mambaout import GatedCNNBlock

SIZES = {"hidden": 21, "kernel_size": 3, "state_size": 4, "heads": 2}


def build(kind, *, sequence=False, dense=False, **changes):
    fields = SIZES | {"num_classes": 5, "width": 8, "dilations": (1, 1)} | changes
    return TokenModel(kind=kind, sequence=sequence, dense=dense, **fields)


@pytest.mark.parametrize(
    ("kind", "token_mixer", "routes"),
    [
        ("conv", "conv", None),
        ("conv+ssm bidirectional", "conv+ssm", "bidirectional"),
        pytest.param("conv+ssm causal", "conv+ssm", "raster", marks=pytest.mark.slow),
        pytest.param("ssm", "ssm", "bidirectional", marks=pytest.mark.slow),
    ],
)
def test_block_on_maps_is_that_of_mambaout(rng, kind, token_mixer, routes):
    x = jnp.asarray(rng.standard_normal((2, 4, 5, 3), np.float32))
    model = build(kind, dense=True, dilations=(1,))
    params = rescale(jax.jit(model.init)(jax.random.key(0), x)["params"])
    params = jax.tree.map(np.asarray, params)
    original = create_backbone(
        "mambaout_tiny", depths=(1,), dims=(8,), kernel_size=3, token_mixer=token_mixer,
        routes=routes, state_size=4, expansion_ratio=21.5 / 8,
    )  # fmt: skip
    block = GatedCNNBlock(original.block)
    tokens = (
        np.asarray(x) @ params["embed"]["kernel"] + params["embed"]["bias"] + params["positions"][0]
    )
    tokens = np.asarray(
        jax.jit(block.apply, static_argnums=2)(
            {"params": params["block_00"]}, jnp.asarray(tokens), False
        )
    )
    tokens = tokens.reshape(2, 20, 8)
    normed = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(
        tokens.var(-1, keepdims=True) + 1e-6
    )
    expected = normed @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    got = jax.jit(model.apply)({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("conv", "conv+ssm causal") else pytest.mark.slow)
        for kind in MIXERS
        if kind != "conv pyramid"
    ],
)
def test_tokens_of_a_sequence_see_what_their_mixer_shows(rng, kind):
    blocks = 2 if MIXERS[kind].token_mixer == "conv" else 1  # a block of the others sees all it may
    model = build(kind, sequence=True, dense=True, dilations=(1,) * blocks)
    x = rng.standard_normal((1, 1, 9, 3), np.float32)
    params = rescale(jax.jit(model.init)(jax.random.key(0), x)["params"])
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply({"params": params}, x)[0].sum(axis=-1)))(
        x
    )
    seen = np.abs(jacobian)[:, 0, 0].sum(axis=-1) > 0  # (token asked, token seen)
    row, column = np.indices((9, 9))
    if MIXERS[kind].looks_ahead:
        expected = np.ones((9, 9), bool)
    elif model.reach is not None:  # two layers of three taps
        assert model.reach == 4
        expected = (column <= row) & (column >= row - 4)
    else:
        expected = column <= row
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.slow
def test_conv_on_a_map_reaches_as_far_as_its_kernels_and_the_bidirectional_ssm_everywhere(rng):
    x = rng.standard_normal((1, 7, 7, 3), np.float32)
    reach = {}
    for kind in ("conv", "conv+ssm causal", "conv+ssm bidirectional"):
        model = build(kind, dense=True, dilations=(1,))
        params = rescale(jax.jit(model.init)(jax.random.key(0), x)["params"])
        gradient = jax.jit(
            jax.grad(lambda x, m=model, p=params: m.apply({"params": p}, x)[0, 24].sum())
        )(x)
        reach[kind] = np.abs(gradient)[0].sum(axis=-1) > 0
    row, column = np.indices((7, 7))
    near = np.maximum(abs(row - 3), abs(column - 3)) <= 1
    np.testing.assert_array_equal(reach["conv"], near)
    scanned = np.zeros((9, 9), bool)  # the scan is causal, the convolution before it is not
    for r, c in zip(*np.divmod(np.arange(25), 7), strict=True):
        scanned[r : r + 3, c : c + 3] = True
    np.testing.assert_array_equal(reach["conv+ssm causal"], scanned[1:-1, 1:-1])
    assert reach["conv+ssm bidirectional"].all()


@pytest.mark.slow
def test_rescale_sets_the_deviation_by_fan_in_and_leaves_the_scan_alone():
    model = build("conv+ssm causal", width=64, hidden=100, dilations=(1,))
    before = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))["params"]
    after = rescale(before)
    block = after["block_00"]
    assert np.std(after["embed"]["kernel"]) == pytest.approx(32**-0.5, rel=0.05)
    assert np.std(block["fc1"]["kernel"]) == pytest.approx(64**-0.5, rel=0.05)
    assert np.std(block["fc2"]["kernel"]) == pytest.approx(100**-0.5, rel=0.05)
    assert np.std(block["conv"]["kernel"]) == pytest.approx(1 / 3, rel=0.1)
    for untouched in (lambda p: p["positions"], lambda p: p["block_00"]["ssm"]):
        equal = jax.tree.map(np.array_equal, untouched(before), untouched(after))
        assert jax.tree.all(equal)
    sequence = build("conv", sequence=True).init(jax.random.key(0), jnp.zeros((1, 1, 9, 3)))
    conv = sequence["params"]["block_00"]["conv"]["kernel"]
    np.testing.assert_array_equal(rescale(sequence["params"])["block_00"]["conv"]["kernel"], conv)


def test_parameters_and_macs_equal_the_closed_form():
    L, D, h, K, N, R, width_of_input, classes = 54, 8, 21, 3, 4, 1, 3, 5
    model = build("conv+ssm bidirectional", dilations=(1,), dense=True)
    cost = count(model, (6, 9, width_of_input))
    path = D * (R + 2 * N) + R * D
    assert cost.parameters == (
        (width_of_input * D + D + L * D)
        + (2 * D + D * 2 * h + 2 * h + K * K * D + D + h * D + D)
        + 2 * (path + D + D * N + D)
        + (2 * D + D * classes + classes)
    )
    assert cost.macs == L * (
        width_of_input * D + D * 2 * h + K * K * D + h * D + D * classes
        + 2 * (path + 9 * D * N + D)
    )  # fmt: skip


def seen_from(model, shape, place):
    """Which tokens of a map or sequence the answer of one depends on."""
    x = np.random.default_rng(0).standard_normal((1, *shape, 3), np.float32)
    params = rescale(jax.jit(model.init)(jax.random.key(0), x)["params"])
    gradient = jax.jit(jax.grad(lambda x: model.apply({"params": params}, x)[0, place].sum()))(x)
    return np.abs(gradient)[0].sum(axis=-1) > 0


@pytest.mark.slow
def test_dilated_taps_reach_as_far_as_is_said_without_gaps():
    model = build("conv dilated", dense=True, dilations=(1, 3))
    assert model.reach == 1 + 3
    row, column = np.indices((11, 11))
    expected = np.maximum(abs(row - 5), abs(column - 5)) <= 4
    np.testing.assert_array_equal(seen_from(model, (11, 11), 5 * 11 + 5), expected)
    model = build("conv dilated", sequence=True, dense=True, dilations=(1, 3))
    assert model.reach == 2 + 6
    seen = seen_from(model, (1, 12), 11)[0]
    np.testing.assert_array_equal(seen, np.arange(12) >= 11 - 8)


@pytest.mark.slow
def test_a_pyramid_reaches_at_least_as_far_as_is_said_on_odd_maps():
    model = build("conv pyramid", dense=True, dilations=(1, 1, 1), levels=2)
    assert model.reach == 1 + 2 + 1
    seen = seen_from(model, (19, 17), 9 * 17 + 8)
    row, column = np.indices((19, 17))
    assert seen[np.maximum(abs(row - 9), abs(column - 8)) <= 4].all()
    assert not seen.all()


def test_encode_makes_ids_one_hot_and_keeps_features():
    np.testing.assert_array_equal(
        encode(jnp.array([[[2, 0]]]), 3), np.array([[[[0, 0, 1], [1, 0, 0]]]], np.float32)
    )
    features = jnp.ones((1, 2, 2, 3))
    assert encode(features, 0) is features
