# SPDX-License-Identifier: Apache-2.0
"""TransNeXt's attentions against float64 loops over tokens, heads, neighbours and coarse pixels."""

import jax
import numpy as np
import pytest
from support import oracles
from support.variables import randomised

from mambaout_jax.mixers.aggregated_attention import (
    AggregatedAttention,
    CosineAttention,
    CosineQuery,
    distances,
)

GRID = (7, 3)  # smaller than some maps, larger than others


def in_float64(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def bins(size, side):
    """The pixels of each mean along an axis, as PyTorch's adaptive pooling takes them."""
    count = max(1, size // side)
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def scaled(away, published):
    """A distance in pixels, in units of which the published grid has 8, on a log scale."""
    away = 8 * away / (published - 1)
    return np.sign(away) * np.log2(1 + abs(away)) / 3


def bias(p, place, pixels):
    """Of each head, the bias between a pixel and a mean of rows and of columns."""
    away = [scaled(i - np.mean(of), n) for i, of, n in zip(place, pixels, GRID, strict=True)]
    return dense(p["fc2"], np.maximum(dense(p["fc1"], np.array(away)), 0))


def weigh(p, h, query, keys, biases):
    """The weights of the keys that a query sees, and its direction: Eq. 6 of the paper."""
    direction = query / np.linalg.norm(query)
    factor = np.log1p(np.exp(p["temperature"][h, 0, 0])) * np.log(len(keys))
    asked = factor * (direction + p["query_embedding"][h, 0])
    weights = np.exp([asked @ key / np.linalg.norm(key) for key in keys] + np.array(biases))
    return weights / weights.sum(), direction


@pytest.mark.parametrize(("size", "side"), [(6, 1), (6, 2), (7, 2), (2, 3)])
def test_distances_of_all_pairs_are_on_a_log_scale_and_each_once(size, side):
    away, number = distances(size, side, 5)
    exact = [[scaled(i - np.mean(pixels), 5) for pixels in bins(size, side)] for i in range(size)]
    np.testing.assert_allclose(away[number], exact, atol=1e-8)
    np.testing.assert_allclose(away, np.unique(np.round(exact, 8)), atol=1e-7)


def test_queries_are_directions_times_temperature_and_logarithm_of_keys(rng):
    query = rng.standard_normal((2, 3, 2, 4), np.float32)
    query[0, 0] = 0  # has no direction
    keys = np.float32([2, 5, 1])[None, :, None, None]
    init = jax.jit(CosineQuery(heads=2).init_with_output)
    (direction, scored), variables = init(jax.random.key(0), query, keys)
    exact = query / np.maximum(np.linalg.norm(query, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(direction, exact, atol=1e-6)
    embedding = np.asarray(variables["params"]["query_embedding"])[:, 0]
    exact = (exact + embedding) * np.log(keys) / 0.24  # the first temperature
    np.testing.assert_allclose(scored, exact, atol=1e-5)


def aggregated_in_numpy(p, x, heads):
    """Section 3.2 of the paper for one map: 3 x 3 neighbours and means of 2 x 2 pixels."""
    (H, W, C), width, y = x.shape, x.shape[-1] // heads, np.zeros(x.shape)
    pixels = [(rows, columns) for rows in bins(H, 2) for columns in bins(W, 2)]
    near, queries, coarse = dense(p["kv"], x), dense(p["q"], x), oracles.gelu(dense(p["reduce"], x))
    coarse = np.array([coarse[np.ix_(*of)].mean(axis=(0, 1)) for of in pixels])
    coarse = dense(p["kv"], oracles.layer_norm(coarse, **p["norm"], epsilon=1e-5))
    for (i, j), h in ((at, h) for at in np.ndindex(H, W) for h in range(heads)):
        part, behind = (slice(k * C + h * width, k * C + (h + 1) * width) for k in range(2))
        around = [(k, i + k // 3 - 1, j + k % 3 - 1) for k in range(9)]
        taps = [(k, r, c) for k, r, c in around if 0 <= r < H and 0 <= c < W]
        seen = [near[r, c] for _, r, c in taps] + list(coarse)
        biases = [p["relative_pos_bias_local"][h, k] for k, *_ in taps]
        biases += [bias(p["position_bias"], (i, j), of)[h] for of in pixels]
        looking = queries[i, j, part], [token[part] for token in seen], biases
        weights, direction = weigh(p["query"], h, *looking)
        for n, (k, *_) in enumerate(taps):
            weights[n] += direction @ p["learnable_tokens"][h, :, k] + p["learnable_bias"][h, 0, k]
        y[i, j, part] = sum(w * token[behind] for w, token in zip(weights, seen, strict=True))
    return dense(p["proj"], y)


# A reduction of 2 divides the first size alone, and the last is below it.
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_aggregated_attention_equals_the_loop(rng, size):
    x = rng.standard_normal((2, *size, 8), np.float32)
    module = AggregatedAttention(heads=2, reduction=2, grid=GRID, dtype=None)
    variables = randomised(module, x)
    got, p = jax.jit(module.apply)(variables, x), in_float64(variables)
    exact = [aggregated_in_numpy(p, one, heads=2) for one in x.astype(np.float64)]
    np.testing.assert_allclose(got, exact, atol=1e-5)


def test_cosine_attention_equals_the_loop(rng):
    x = rng.standard_normal((2, 4, 6, 8), np.float32)
    module = CosineAttention(heads=2, grid=GRID, dtype=None)
    variables = randomised(module, x)
    p, got = in_float64(variables), jax.jit(module.apply)(variables, x)
    tokens, y = dense(p["qkv"], x.reshape(2, 24, 8).astype(np.float64)), np.zeros(x.shape)
    for b, i, j, h in np.ndindex(2, 4, 6, 2):
        part = slice(4 * h, 4 * h + 4)
        query, key, value = (t[..., part] for t in np.split(tokens[b], 3, axis=-1))
        biases = [bias(p["position_bias"], (i, j), ([r], [c]))[h] for r, c in np.ndindex(4, 6)]
        weights, _ = weigh(p["query"], h, query[6 * i + j], key, biases)
        y[b, i, j, part] = sum(w * v for w, v in zip(weights, value, strict=True))
    np.testing.assert_allclose(got, dense(p["proj"], y), atol=1e-5)
