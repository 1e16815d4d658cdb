# SPDX-License-Identifier: Apache-2.0
"""Necks: four maps of strides 4, 8, 16, 32 from any backbone, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import gelu, layer_norm
from support.variables import randomised

from mambaout_jax.backbone import Pyramid
from mambaout_jax.heads.neck import PyramidNeck, SimplePyramidNeck, make_neck
from mambaout_jax.models import create_backbone, list_models


def normed(p, x):
    return layer_norm(x, p["scale"], p["bias"], 1e-5)


def enlarged(p, x):
    """Each pixel spreads over a square: y[2i + a, 2j + b] = x[i, j] · kernel[a, b] + bias."""
    batch, height, width, _ = x.shape
    y = np.zeros((batch, 2 * height, 2 * width, p["bias"].size))
    for a in range(2):
        for b in range(2):
            y[:, a::2, b::2] = x @ p["kernel"][a, b] + p["bias"]
    return y


def shrunk(x):
    """The largest of each square; what sticks out at the right and below counts by itself."""
    rows = [x[:, i : i + 2].max(1) for i in range(0, x.shape[1], 2)]
    x = np.stack(rows, 1)
    return np.stack([x[:, :, j : j + 2].max(2) for j in range(0, x.shape[2], 2)], 2)


def in_float64(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])


def test_pyramid_neck_normalises_each_map_by_itself(rng):
    shapes = (2, 5, 6, 4), (2, 3, 3, 6), (2, 2, 2, 8), (2, 1, 1, 10)
    maps = tuple(10 * rng.standard_normal(shape) for shape in shapes)
    neck = PyramidNeck((4, 6, 8, 10))
    given = tuple(jnp.asarray(x, jnp.float32) for x in maps)
    variables = randomised(neck, given)
    p = in_float64(variables)
    for i, (x, y) in enumerate(zip(maps, jax.jit(neck.apply)(variables, given), strict=True)):
        np.testing.assert_allclose(y, normed(p[f"norm_{i}"], x), atol=2e-5)


def test_simple_pyramid_of_one_map_equals_numpy(rng):
    x = rng.standard_normal((2, 3, 5, 8))
    neck = SimplePyramidNeck(8, 16)
    given = (jnp.asarray(x, jnp.float32),)
    variables = randomised(neck, given)
    p = in_float64(variables)
    quarter = enlarged(p["up_0_0"], x)
    quarter = enlarged(p["up_0_1"], gelu(normed(p["up_0_norm_0"], quarter)))
    expected = quarter, enlarged(p["up_1_0"], x), x, shrunk(x)
    maps = jax.jit(neck.apply)(variables, given)
    assert tuple(y.shape[-1] for y in maps) == neck.channels == (2, 4, 8, 8)
    for i, (y, wanted) in enumerate(zip(maps, expected, strict=True)):
        np.testing.assert_allclose(y, normed(p[f"norm_{i}"], wanted), atol=2e-5)


def test_four_maps_of_one_stride_make_a_level_each(rng):
    maps = tuple(jnp.asarray(rng.standard_normal((1, 2, 4, 8)), jnp.float32) for _ in range(4))
    neck = SimplePyramidNeck(8, 8)
    variables = randomised(neck, maps)
    apply = jax.jit(neck.apply)
    together = apply(variables, maps)
    for i, x in enumerate(maps):
        np.testing.assert_array_equal(apply(variables, (x,))[i], together[i])
    assert [y.shape[1:3] for y in together] == [(4, 8), (2, 4), (1, 2), (1, 1)]


def test_every_family_has_a_neck_with_known_channels():
    by_class = {}
    for name in list_models():
        backbone = create_backbone(name)
        by_class.setdefault(type(backbone), backbone)
    for backbone in by_class.values():
        neck = make_neck(backbone)
        maps = tuple(
            jax.ShapeDtypeStruct((1, -(-64 // s), -(-64 // s), c), jnp.float32)
            for s, c in zip(backbone.strides, backbone.channels, strict=True)
        )
        out, _ = jax.eval_shape(neck.init_with_output, jax.random.key(0), maps)
        assert tuple(y.shape for y in out) == tuple(
            (1, side, side, c) for side, c in zip((16, 8, 4, 2), neck.channels, strict=True)
        )


@pytest.mark.parametrize("neck", [SimplePyramidNeck(8, 16), PyramidNeck((8,))])
def test_neck_computes_in_its_dtype(neck):
    x = (jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.float32),)
    variables = jax.eval_shape(neck.init, jax.random.key(0), x)
    narrow = jax.eval_shape(neck.clone(dtype=jnp.bfloat16).apply, variables, x)
    assert {y.dtype for y in narrow} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64():
        wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), (variables, x))
        assert {y.dtype for y in jax.eval_shape(neck.apply, *wide)} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize(
    ("dims", "name", "options", "said"),
    [
        ((8, 16, 32), None, {}, "strides (4, 8, 16)"),
        (None, "deit_tiny_patch16_224", {"out_blocks": (1, 2)}, "strides (16, 16)"),
        (None, "deit_tiny_patch16_224", {"patch_size": 14}, "strides (14,)"),
        (None, "deit_tiny_patch16_224", {"dim": 6, "heads": 3}, "(6,) channels"),
    ],
)
def test_backbones_of_other_strides_are_refused(dims, name, options, said):
    made = create_backbone(name, **options) if name else Pyramid(depths=(1,) * 3, dims=dims)
    with pytest.raises(ValueError, match=r"dense heads take strides \(4, 8, 16, 32\)") as refusal:
        make_neck(made)
    assert said in str(refusal.value)
