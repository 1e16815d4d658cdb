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


@pytest.mark.parametrize("kind", ["odd", pytest.param("even", marks=pytest.mark.slow)])
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
    outputs = jax.jit(FPN().apply)({"params": params}, maps)
    assert len(outputs) == 5
    for i, output in enumerate(outputs):
        name = f"{kind}_p{i + 2}"
        error = np.abs(output.transpose(0, 3, 1, 2)[:, ::16] - arrays[name]).max()
        assert error <= 5e-5 * meta["stages"][name]["std"], name


def test_each_new_pixel_is_the_one_below_it(rng):
    x = jnp.asarray(rng.standard_normal((1, 7, 6, 2)))
    y = enlarge(x, (13, 12))
    for i, j in np.ndindex(13, 12):
        np.testing.assert_array_equal(y[0, i, j], x[0, i * 7 // 13, j * 6 // 12])
