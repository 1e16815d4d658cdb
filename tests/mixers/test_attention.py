# SPDX-License-Identifier: Apache-2.0
"""Attention against float64 loops; who sees whom, by changing tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support.oracles import attention

from mambaout_jax.mixers.attention import (
    MultiHeadSelfAttention,
    WindowAttention,
    scaled_dot_product_attention,
)


def mixer_in_numpy(params, x, heads, mask):
    """Multi-head self-attention in float64, written from Vaswani et al., section 3.2."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    channels = x.shape[-1]
    width = channels // heads
    qkv = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    mixed = np.zeros(x.shape)
    for h in range(heads):
        query, key, value = (
            qkv[..., part * channels + h * width : part * channels + (h + 1) * width]
            for part in range(3)
        )
        mixed[..., h * width : (h + 1) * width] = attention(query, key, value, mask)
    return mixed @ p["proj"]["kernel"] + p["proj"]["bias"]


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((2, 7, 12), np.float32))


@pytest.fixture
def variables(rng, x):
    shapes = jax.eval_shape(MultiHeadSelfAttention(3).init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_product_attention_equals_the_loop(rng, masked):
    query = rng.standard_normal((2, 3, 5, 4))
    key, value = rng.standard_normal((2, 2, 3, 6, 4))
    mask = rng.random((5, 6)) < 0.5 if masked else np.ones((5, 6), bool)
    mask[:, 2] = True
    got = scaled_dot_product_attention(
        *(jnp.asarray(t, jnp.float32) for t in (query, key, value)),
        jnp.asarray(mask)[None, None] if masked else None,
    )
    np.testing.assert_allclose(got, attention(query, key, value, mask), atol=2e-6)


def test_scores_take_another_factor_and_projections_no_bias(x):
    narrow = MultiHeadSelfAttention(3, qkv_bias=False, scale=0.25)
    variables = narrow.init(jax.random.key(0), x)
    assert variables["params"]["qkv"].keys() == {"kernel"}
    got = narrow.apply(variables, x)
    wider = jax.tree.map(jnp.asarray, variables)  # a factor of 1/2 is that of heads of width 4
    kernel = variables["params"]["qkv"]["kernel"]
    wider["params"]["qkv"] = {"kernel": kernel.at[:, :12].multiply(0.5), "bias": jnp.zeros(36)}
    np.testing.assert_allclose(got, MultiHeadSelfAttention(3).apply(wider, x), atol=1e-6)


def test_softmax_is_computed_in_float32_of_bfloat16_arguments():
    # 1000 equal weights: bfloat16 cannot add them up, it stops at 256.
    ones = jnp.ones((1, 1, 1000, 2), jnp.bfloat16)
    got = scaled_dot_product_attention(ones, ones, 3 * ones)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), 3.0, rtol=2**-8)
    # Scores that bfloat16 would make equal: 64 and 64.25, √4 times that before the scaling.
    query = jnp.full((1, 1, 1, 4), 1, jnp.bfloat16)
    key = jnp.asarray([[[[128, 0, 0, 0], [128, 0.5, 0, 0]]]], jnp.bfloat16)
    value = jnp.asarray([[[[0] * 4, [1] * 4]]], jnp.bfloat16)
    got = np.asarray(scaled_dot_product_attention(query, key, value), np.float32)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-0.25)), rtol=2**-8)


def test_float64_stays_float64(x, variables):
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        mixer = MultiHeadSelfAttention(3, causal=True)
        got = mixer.apply(double, jnp.asarray(x, jnp.float64))
    exact = mixer_in_numpy(variables["params"], np.asarray(x, np.float64), 3, np.tri(7, dtype=bool))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, exact, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_the_loop(x, variables, causal):
    mask = np.tri(7, dtype=bool) if causal else np.ones((7, 7), bool)
    got = MultiHeadSelfAttention(3, causal).apply(variables, x)
    exact = mixer_in_numpy(variables["params"], np.asarray(x, np.float64), 3, mask)
    np.testing.assert_allclose(got, exact, atol=5e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_token_sees_itself_and_those_before_it_or_all(x, variables, causal):
    apply = jax.jit(MultiHeadSelfAttention(3, causal).apply)
    before = apply(variables, x)
    for j in range(7):
        moved = np.any(apply(variables, x.at[:, j].add(1)) != before, axis=(0, 2))
        np.testing.assert_array_equal(moved, np.arange(7) >= j if causal else [True] * 7)


def test_causal_has_the_same_parameters(x, variables):
    shapes = jax.eval_shape(MultiHeadSelfAttention(3, causal=True).init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    assert shapes["params"]["qkv"]["kernel"].shape == (12, 36)


def test_heads_that_do_not_divide_the_channels_are_named(x):
    with pytest.raises(ValueError, match=r"heads=5 .* 12 channels; allowed are \[1, 2, 3, 4, 6"):
        MultiHeadSelfAttention(5).init(jax.random.key(0), x)


def windows_in_numpy(params, x, heads, side, shift):
    """Window attention in float64, token by token: who sees whom follows from places alone."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0)))
    _, H, W, channels = x.shape
    width = channels // heads
    shifts = [shift if n > side else 0 for n in (H, W)]
    qkv = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    query, key, value = np.split(qkv, 3, axis=-1)
    places = [(i, j) for i in range(H) for j in range(W)]

    def window_of(place):
        # Tokens that the roll brings to the other side form windows of their own.
        return tuple((n - s) // side for n, s in zip(place, shifts, strict=True))

    mixed = np.zeros_like(x)
    for b in range(len(x)):
        for i, j in places:
            seen = [q for q in places if window_of(q) == window_of((i, j))]
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = np.array([
                    query[b, i, j, part] @ key[b, *q, part] / np.sqrt(width)
                    + p["relative_position_bias"][
                        (i - q[0] + side - 1) * (2 * side - 1) + j - q[1] + side - 1, h
                    ]
                    for q in seen
                ])  # fmt: skip
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed[b, i, j, part] = sum(
                    w * value[b, *q, part] for w, q in zip(weights, seen, strict=True)
                )
    return mixed @ p["proj"]["kernel"] + p["proj"]["bias"]


@pytest.mark.parametrize(("size", "shift"), [((6, 9), 0), ((6, 9), 1), ((3, 7), 2), ((2, 2), 1)])
def test_window_attention_equals_the_loop(rng, size, shift):
    x = rng.standard_normal((2, *size, 4))
    mixer = WindowAttention(2, window=3, shift=shift)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.asarray(x, jnp.float32))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    with jax.enable_x64(True):
        got = jax.jit(mixer.apply)(variables, x)
    exact = windows_in_numpy(variables["params"], x, 2, 3, shift)
    np.testing.assert_allclose(got, exact[:, : size[0], : size[1]], atol=1e-12)


@pytest.mark.slow
def test_windows_of_a_symbolic_map_are_shifted_where_there_are_several(rng):
    mixer = WindowAttention(2, window=3, shift=1)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 3, 3, 4)))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    with jax.enable_x64(True):
        symbolic = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 4"), jnp.float64)
        program = export.export(jax.jit(mixer.apply))(variables, symbolic)
        for size in ((6, 8), (3, 7), (2, 2)):
            x = rng.standard_normal((2, *size, 4))
            exact = windows_in_numpy(variables["params"], x, 2, 3, 1)
            got = program.call(variables, x)
            np.testing.assert_allclose(got, exact[:, : size[0], : size[1]], atol=1e-12)
