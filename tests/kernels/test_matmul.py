# SPDX-License-Identifier: Apache-2.0
"""The matrix products and both gradients against numpy, for few and for many tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mambaout_jax.kernels.matmul import join_matmul, matmul, split_matmul


def split(x, weight):
    half, total = weight.shape[1] // 2, weight.shape[1]
    parts = split_matmul(x, weight, (half, 0, total - half))
    assert [part.shape[1] for part in parts] == [half, 0, total - half]
    return jnp.concatenate(parts, axis=1)


def join(x, weight):
    return join_matmul((x[:, :1], x[:, 1:1], x[:, 1:]), weight)


PRODUCTS = {"whole": matmul, "split": split, "join": join}


@pytest.fixture(params=PRODUCTS)
def product(request):
    return PRODUCTS[request.param]


def gradients(product, x, weight, dy):
    y, vjp = jax.vjp(product, x, weight)
    return y, *vjp(dy)


def expected(x, weight, dy):
    x, weight, dy = (np.asarray(a, np.float64) for a in (x, weight, dy))
    return x @ weight, dy @ weight.T, x.T @ dy


@pytest.mark.parametrize("tokens", [1, 37, 4096, 4097])  # halves from 4096 on, where even
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 1e-5)])
def test_products_and_their_gradients_match_numpy(rng, product, tokens, dtype, tolerance):
    shapes = ((tokens, 5), (5, 3), (tokens, 3))
    with jax.enable_x64(dtype == "float64"):
        arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
        got = [
            np.asarray(array) for array in jax.jit(gradients, static_argnums=0)(product, *arrays)
        ]
        inference = np.asarray(jax.jit(product)(*arrays[:2]))
    y, dx, dweight = expected(*arrays)
    for ours, truth in zip((inference, *got), (y, y, dx, dweight), strict=True):
        assert ours.dtype == dtype
        assert np.abs(ours - truth).max() <= tolerance * np.abs(truth).max()


def test_products_add_up_bfloat16_in_float32(rng, product):
    shapes = ((8192, 4), (4, 6), (8192, 6))
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    _, _, dweight = jax.jit(gradients, static_argnums=0)(product, *arrays)
    truth = expected(*arrays)[2]
    assert dweight.dtype == jnp.bfloat16
    assert np.abs(np.asarray(dweight, np.float64) - truth).max() <= 2**-7 * np.abs(truth).max()


def test_products_move_no_tokens_between_devices(rng, product):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tokens = NamedSharding(mesh, PartitionSpec("data"))
    shapes = ((8192, 16), (16, 24), (8192, 24))
    x, weight, dy = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    x, dy = jax.device_put(x, tokens), jax.device_put(dy, tokens)
    weight = jax.device_put(weight, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(gradients, static_argnums=0).lower(product, x, weight, dy).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    for ours, truth in zip(compiled(x, weight, dy), expected(x, weight, dy), strict=True):
        assert np.abs(ours - truth).max() <= 1e-5 * np.abs(truth).max()
