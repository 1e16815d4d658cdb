# SPDX-License-Identifier: Apache-2.0
"""CSWin, PVTv2, CoAtNet, MOAT, MViTv2, Focal and InternImage: what their goldens do not tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small import small_options
from support.variables import randomised

from mambaout_jax.layers.mbconv import MBConv, same_padding
from mambaout_jax.models import create_backbone
from mambaout_jax.models.cswin import StripeAttention
from mambaout_jax.models.focal import WINDOW, FocalAttention, torch_buffers
from mambaout_jax.models.internimage import POINTS, DeformableConv, sampled
from mambaout_jax.models.mvit_v2 import Pool, _offsets
from mambaout_jax.models.pvt_v2 import ReducedAttention

# How many pixels are left over where a stride does not divide them: none, or one more token.
ENDS = {
    "cswin_tiny": "mixed",  # 4 x 4 patches down, then 3 x 3 convolutions up
    "pvt_v2_b0": "up",
    "coatnet_0_224": "up",
    "moat_0": "up",
    "mvitv2_small": "up",
    "focal_tiny": "down",
    "internimage_t": "up",
}


@pytest.mark.parametrize("name", ENDS)
def test_images_of_any_size_are_taken(name):
    options = {**small_options(name)}
    del options["num_classes"]
    backbone = create_backbone(name, **options)
    image = jax.ShapeDtypeStruct((1, 75, 101, 3), jnp.float32)
    maps, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    for found, stride in zip(maps, backbone.strides, strict=True):
        up, down = ((-(-75 // stride), -(-101 // stride)), (75 // stride, 101 // stride))
        size = found.shape[1:3]
        assert size == {"up": up, "down": down}.get(ENDS[name], size)
        assert all(low <= n <= high for low, n, high in zip(down, size, up, strict=True))


def test_initial_values_are_those_of_the_published_codes():
    """Each module's that differ from the normal ones of deviation 0.02."""
    modules = {
        "reduced": (ReducedAttention(2, 2, None), (1, 4, 4, 64)),
        "pool": (Pool(2, "lax", None), (1, 4, 4, 64)),
        "mbconv": (MBConv(16, 1, True, 0.0, None), (1, 4, 4, 16), False),
        "focal": (FocalAttention(2, 3, 3, None), (1, 7, 7, 4)),
        "deformable": (DeformableConv(2, "lax", None), (1, 4, 4, 8)),
    }

    @jax.jit
    def initial(key):
        return {
            name: module.init(key, jnp.ones(shape), *train)["params"]
            for name, (module, shape, *train) in modules.items()
        }

    found = jax.device_get(initial(jax.random.key(0)))
    reduce = found["reduced"]["reduce"]["conv"]
    assert np.std(reduce["kernel"]) == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.05)
    assert not reduce["bias"].any()
    assert 0.3 < np.abs(found["pool"]["conv"]["kernel"]).max() <= 1 / 3
    mbconv = found["mbconv"]
    assert np.std(mbconv["expand"]["kernel"]) == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert np.std(mbconv["conv"]["kernel"]) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    table, near = "relative_position_bias_table", "relative_position_bias_table_to_neighbors"
    assert not found["focal"][table].any()
    assert np.std(found["focal"][near]) == pytest.approx(0.02, rel=0.1)
    for name in ("offset", "weight"):
        assert not any(leaf.any() for leaf in found["deformable"][name].values())


def test_a_stripe_mixes_its_own_tokens_alone(rng):
    qkv = rng.standard_normal((1, 5, 5, 12), np.float32)
    attention = StripeAttention(2, (None, 2), "lax", None)  # columns 0 1, 2 3, and 4 with zeros
    variables = randomised(attention, qkv)
    before = attention.apply(variables, jnp.array(qkv))
    qkv[0, 3, 2] += 1
    changed = np.abs(attention.apply(variables, jnp.array(qkv)) - before).max(axis=-1)[0] > 1e-6
    assert changed.tolist() == [[False, False, True, True, False]] * 5


@pytest.mark.parametrize(
    ("expand", "region", "column", "seen"),
    [
        pytest.param(0, 1, 14, False, marks=pytest.mark.slow),  # a window of its own
        (3, 1, 17, False),  # three tokens around a window, that is to say
        (3, 1, 18, True),  # those of the opposite border
        pytest.param(0, 3, 14, False, marks=pytest.mark.slow),  # a summary two windows away
        pytest.param(0, 5, 14, True, marks=pytest.mark.slow),
    ],
)
def test_a_focal_window_sees_its_surroundings_and_summaries(rng, expand, region, column, seen):
    x = rng.standard_normal((1, WINDOW, 3 * WINDOW, 4), np.float32)
    attention = FocalAttention(2, expand, region, None)
    variables = randomised(attention, x)
    before = attention.apply(variables, jnp.array(x))
    x[0, 3, column] += 1
    changed = np.abs(attention.apply(variables, jnp.array(x)) - before).max(axis=-1)[0] > 1e-6
    assert changed[:, :WINDOW].all() == changed[:, :WINDOW].any() == seen
    assert changed[:, 2 * WINDOW :].all()


def test_focal_indices_are_those_that_pytorch_saves():
    tables = torch_buffers(create_backbone("focal_tiny"), "official")
    first = "layers.0.blocks.0.attn"
    rolled = tables[f"{first}.valid_ind_rolled"]
    assert (len(rolled), rolled[:3].tolist(), rolled[-1]) == (132, [4, 5, 6], 4 * 49 - 5)
    assert tables[f"{first}.relative_position_index_0"][0, 0] == 6 * 13 + 6
    assert "layers.3.blocks.0.attn.valid_ind_rolled" not in tables


def test_deformable_samples_are_bilinear_and_zero_beyond_the_map(rng):
    H, W, G, C = 4, 5, 2, 3
    x = rng.standard_normal((1, H, W, G, C))
    offsets = 2 * rng.standard_normal((1, H, W, G, POINTS, 2))
    weights = rng.random((1, H, W, G, POINTS))
    expected = np.zeros(x.shape)
    for row, column, g, p in np.ndindex(H, W, G, POINTS):
        right, down = p // 3 - 1, p % 3 - 1  # column by column
        across, along = np.array([column + right, row + down]) + offsets[0, row, column, g, p]
        for i, j in np.ndindex(H, W):
            share = max(0, 1 - abs(along - i)) * max(0, 1 - abs(across - j))
            expected[0, row, column, g] += weights[0, row, column, g, p] * share * x[0, i, j, g]
    got = sampled(*(jnp.asarray(a, jnp.float32) for a in (x, offsets, weights)))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_positions_of_pooled_keys_are_those_of_the_longer_axis():
    assert _offsets(3, 3).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert _offsets(4, 2).tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]  # keys two steps apart
    assert _offsets(2, 4).tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]


@pytest.mark.parametrize(("length", "zeros"), [(6, (0, 2)), (7, (1, 1))])
def test_same_padding_of_tensorflow_begins_at_the_first_pixel_of_an_even_axis(length, zeros):
    assert same_padding(length) == zeros
    assert (length + sum(zeros) - 3 + 2) // 2 == -(-length // 2)
