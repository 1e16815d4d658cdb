# SPDX-License-Identifier: Apache-2.0
"""The feature pyramid, against mmdet's and torchvision's, which agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from support.dense_goldens import load_dense

from mambaout_jax.heads.fpn import FPN, enlarge

DIMS = (96, 192, 384, 576)


@pytest.mark.parametrize("kind", ["even", "odd"])
def test_pyramid_is_mmdets(kind):
    arrays, meta, state = load_dense("fpn")
    sizes = meta["maps"][kind]
    inputs = [
        input_of((1, dim, *size), i) for i, (dim, size) in enumerate(zip(DIMS, sizes, strict=True))
    ]
    maps = tuple(jnp.asarray(x.transpose(0, 2, 3, 1)) for x in inputs)
    params = {}
    for i in range(len(DIMS)):
        for ours, theirs in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            kernel = state[f"{theirs}.{i}.0.weight"].transpose(2, 3, 1, 0)
            params[f"{ours}_{i}"] = {"kernel": kernel, "bias": state[f"{theirs}.{i}.0.bias"]}
    outputs = FPN().apply({"params": params}, maps)
    assert len(outputs) == 5
    for i, output in enumerate(outputs):
        name = f"{kind}_p{i + 2}"
        error = np.abs(output.transpose(0, 3, 1, 2)[:, ::16] - arrays[name]).max()
        assert error <= 5e-5 * meta["stages"][name]["std"], name


def test_initial_values_are_xaviers():
    maps = tuple(jnp.zeros((1, 8 >> i, 8 >> i, 4 * (i + 1))) for i in range(4))
    params = FPN(64).init(jax.random.key(0), maps)["params"]
    for name, fans in (("lateral_3", 16 + 64), ("output_0", 9 * (64 + 64))):
        kernel, bound = params[name]["kernel"], np.sqrt(6 / fans)
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
        np.testing.assert_array_equal(params[name]["bias"], 0)


def test_each_new_pixel_is_the_one_below_it(rng):
    x = jnp.asarray(rng.standard_normal((1, 7, 6, 2)))
    y = enlarge(x, (13, 12))
    for i, j in np.ndindex(13, 12):
        np.testing.assert_array_equal(y[0, i, j], x[0, i * 7 // 13, j * 6 // 12])
