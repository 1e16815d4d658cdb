# SPDX-License-Identifier: Apache-2.0
"""SG-Former's attentions against float64 loops over windows, groups, heads and tokens."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.variables import randomised

from mambaout_jax.mixers.guided_attention import GuidedAttention, HybridAttention

# By the reduction: the share of the sorted tokens where a part ends, and the size of its groups.
PARTS = {
    8: [(1 / 4, 196), (3 / 4, 56), (1, 28)],
    4: [(1 / 4, 49), (3 / 4, 14), (1, 7)],
    2: [(1 / 2, 2), (1, 1)],
}


def in_float64(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def look(query, key, value):
    """Softmax attention of one head: (L, width) of queries, what they find and their weights."""
    scores = [[q @ k / np.sqrt(len(q)) for k in key] for q in query]
    weights = [np.exp(row) / np.exp(row).sum() for row in scores]
    found = [sum(w * v for w, v in zip(row, value, strict=True)) for row in weights]
    return np.array(found), np.array(weights)


def hybrid_in_numpy(p, x, heads, side):
    """Section 3.2 of the paper for one map: what half of the heads find, and the significance."""
    (H, W, C), width = x.shape, x.shape[-1] // heads
    y, significance = np.zeros(x.shape), np.zeros((H, W))
    coarse = oracles.strided_conv(x[None], p["coarse"]["kernel"], side, 0)[0] + p["coarse"]["bias"]
    (rows, columns), half = coarse.shape[:2], heads // 2
    coarse = oracles.gelu(oracles.layer_norm(coarse, **p["norm"], epsilon=1e-5)).reshape(-1, C)
    near = np.concatenate((dense(p["q2"], x), dense(p["kv2"], x)), axis=-1)
    near = np.pad(near, ((0, -H % 7), (0, -W % 7), (0, 0)))  # windows are filled up with zeros
    for h in range(half):
        part, behind = (slice(k * width, (k + 1) * width) for k in (h, half + h))
        key, value = (t[:, part] for t in np.split(dense(p["kv1"], coarse), 2, axis=-1))
        found, weights = look(dense(p["q1"], x)[..., part].reshape(-1, width), key, value)
        y[..., part] = found.reshape(H, W, width)
        for i, j in np.ndindex(H, W):
            seen = weights[:, i * rows // H * columns + j * columns // W]
            significance[i, j] += seen.mean() / half
        for top, left in np.ndindex(-(-H // 7), -(-W // 7)):
            window = near[7 * top : 7 * top + 7, 7 * left : 7 * left + 7].reshape(49, -1)
            found, weights = look(*(t[:, part] for t in np.split(window, 3, axis=-1)))
            for i, j in np.ndindex(H, W):
                if (i // 7, j // 7) == (top, left):
                    y[i, j, behind] = found[i % 7 * 7 + j % 7]
                    significance[i, j] += weights[:, i % 7 * 7 + j % 7].mean() / half
    return y, significance


@pytest.mark.parametrize(("size", "side"), [((4, 6), 2), ((8, 9), 4)])
def test_hybrid_attention_and_its_significance_equal_the_loop(rng, size, side):
    x = rng.standard_normal((2, *size, 8), np.float32)
    module = HybridAttention(heads=4, reduction=side, dtype=None)
    variables = randomised(module, x)
    (y, significance), p = jax.jit(module.apply)(variables, x), in_float64(variables)
    exact = [hybrid_in_numpy(p, one, 4, side) for one in x.astype(np.float64)]
    np.testing.assert_allclose(y, [y for y, _ in exact], atol=1e-5)
    np.testing.assert_allclose(significance, [s for _, s in exact], atol=1e-6)


def test_significance_passes_no_gradient(rng):
    x = jnp.asarray(rng.standard_normal((1, 2, 2, 4)), jnp.float32)
    module = HybridAttention(heads=2, reduction=2, dtype=None)
    gradient = jax.jit(jax.grad(lambda v: module.apply(v, x)[1][0, 0, 0]))(randomised(module, x))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def groups_in_numpy(p, x, significance, reduction):
    """Section 3.3 of the paper: a token of each group; a part's last token fills up its groups."""
    tokens, significance = x.reshape(-1, x.shape[-1]), significance.reshape(-1)
    tokens = tokens[sorted(range(len(tokens)), key=lambda number: significance[number])]
    sums, start = [], 0
    for number, (share, length) in enumerate(PARTS[reduction], start=1):
        f, part = p[f"f{number}"], tokens[start : int(share * len(tokens))]
        start += len(part)
        for first in range(0, len(part), length):
            group = [part[min(first + i, len(part) - 1)] for i in range(length)]
            sums.append(f["kernel"][:, 0] @ np.array(group) + f["bias"])
    return np.array(sums)


@pytest.mark.parametrize(
    ("size", "reduction"), [((4, 6), 8), ((8, 7), 4), ((4, 6), 2), ((3, 5), 2), ((4, 6), 1)]
)
def test_guided_attention_equals_the_loop(rng, size, reduction):
    x = rng.standard_normal((2, *size, 8), np.float32)
    # Some are equally significant: then rows or columns decide who comes first.
    significance = rng.integers(5, size=(2, *size)).astype(np.float32)
    given = None if reduction == 1 else jnp.asarray(significance)
    module = GuidedAttention(heads=4, reduction=reduction, dtype=None)
    variables = randomised(SimpleNamespace(init=partial(module.init, significance=given)), x)
    got, p = jax.jit(module.apply)(variables, x, given), in_float64(variables)
    for one, seen, y in zip(x.astype(np.float64), significance, np.asarray(got), strict=True):
        sequences = {"kv": one.reshape(-1, 8)}
        if reduction > 1:
            orders = {"kv1": (one, seen), "kv2": (one.swapaxes(0, 1), seen.T)}
            sequences = {name: groups_in_numpy(p, *o, reduction) for name, o in orders.items()}
        queries, heads = dense(p["q"], one.reshape(-1, 8)), []
        for name, sequence in sequences.items():
            key, value = np.split(dense(p[name], sequence), 2, axis=-1)
            for at in range(0, key.shape[1], 2):
                query = queries[:, 2 * len(heads) : 2 * len(heads) + 2]
                heads.append(look(query, key[:, at : at + 2], value[:, at : at + 2])[0])
        np.testing.assert_allclose(y.reshape(-1, 8), np.concatenate(heads, axis=1), atol=1e-5)
