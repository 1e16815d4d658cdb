# SPDX-License-Identifier: Apache-2.0
"""Layers against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from scipy.special import erf
from support import oracles

from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.channel_gates import SqueezeExcite
from mambaout_jax.layers.conv import Conv, DepthwiseConv, unfold
from mambaout_jax.layers.downsample import mean_pool
from mambaout_jax.layers.initializers import normal_fan_out_init, torch_inits
from mambaout_jax.layers.linear import Dense, JoinDense, SplitDense
from mambaout_jax.layers.norms import BatchNorm, LayerNorm, RMSNorm
from mambaout_jax.layers.positions import (
    grid_sinusoids,
    height_and_width,
    relative_bias,
    relative_position_index,
    resize_positions,
    rotate,
    rotation_tables,
)
from mambaout_jax.layers.residual import DropPath, drop_path_rates
from mambaout_jax.layers.resize import pooling_weights, resize_linear
from mambaout_jax.mixers.attention import MultiHeadSelfAttention


def test_strided_conv_pads_one_on_every_side(rng):
    x = rng.standard_normal((1, 6, 7, 2))
    conv = Conv(3, 3, 2, 1)
    variables = conv.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((1, 3, 4, 3))
    for i in range(3):
        for j in range(4):
            window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[0, i, j] = np.einsum("abc,abcd->d", window, kernel)
    got = conv.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 4, 2)])
def test_unfolded_pixels_are_those_that_a_convolution_reads(rng, side, stride, padding):
    x = rng.standard_normal((2, 9, 12, 3), np.float32)
    kernel = rng.standard_normal((side, side, 3, 4), np.float32)
    conv = Conv(4, side, stride, padding, use_bias=False)
    expected = conv.apply({"params": {"kernel": kernel}}, x)
    pixels = unfold(jnp.asarray(x), side, stride, padding)  # (B, H, W, C, K)
    assert pixels.shape[3:] == (3, side**2)
    got = np.einsum("bhwck,kcf->bhwf", pixels, kernel.reshape(side**2, 3, 4))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "dilation"), [((7, 10), 3), ((4, 5), 7)])
def test_dilated_depthwise_conv_takes_every_so_manyth_pixel(rng, size, dilation):
    x = rng.standard_normal((2, *size, 3))
    conv = DepthwiseConv(3, dilation=dilation)
    variables = conv.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    kernel = np.asarray(variables["params"]["kernel"], np.float64)[:, :, 0]
    expected = np.zeros(x.shape)
    for row, column, i, j in np.ndindex(*size, 3, 3):
        r, c = row + (i - 1) * dilation, column + (j - 1) * dilation
        if 0 <= r < size[0] and 0 <= c < size[1]:
            expected[:, row, column] += kernel[i, j] * x[:, r, c]
    got = conv.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_depthwise_conv_of_a_stride_and_a_rectangle_keeps_pytorchs_pixels(rng):
    x = jnp.asarray(rng.standard_normal((2, 6, 7, 3)), jnp.float32)
    conv = DepthwiseConv((1, 5), stride=2)
    variables = conv.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (1, 5, 1, 3)
    every = oracles.depthwise_conv(x, kernel[:, :, 0])
    np.testing.assert_allclose(conv.apply(variables, x), every[:, ::2, ::2], atol=1e-6)


def test_norms_and_projections_go_without_biases():
    x = jax.ShapeDtypeStruct((1, 4, 6), jnp.float32)
    attention = MultiHeadSelfAttention(2, qkv_bias=False, proj_bias=False)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)["params"]
    assert {name: list(layer) for name, layer in shapes.items()} == {
        "qkv": ["kernel"], "proj": ["kernel"],
    }  # fmt: skip
    norm = jax.eval_shape(LayerNorm(use_bias=False).init, jax.random.key(0), x)["params"]
    assert list(norm) == ["scale"]


def test_initial_values_follow_the_fan():
    conv = {"kernel_init": normal_fan_out_init(3 * 3 * 50)}
    kernel = Conv(50, 3, **conv).init(jax.random.key(0), jnp.zeros((1, 3, 3, 30)))
    spread = float(jnp.std(kernel["params"]["kernel"]))
    assert spread == pytest.approx((2 / 450) ** 0.5, rel=0.03)
    gate = SqueezeExcite(5, "silu", inits=lambda fan_in, _: torch_inits(fan_in))
    params = gate.init(jax.random.key(0), jnp.zeros((1, 2, 2, 40)))["params"]
    for name, fan_in in (("reduce", 40), ("expand", 5)):
        for leaf in params[name].values():
            assert 0.5 * fan_in**-0.5 < float(jnp.abs(leaf).max()) <= fan_in**-0.5


@pytest.mark.parametrize(("stride", "padding"), [(2, None), (4, None), (2, ((0, 2), (1, 1)))])
def test_strided_depthwise_conv_takes_every_so_manyth_window(rng, stride, padding):
    x = rng.standard_normal((1, 6, 7, 2))
    conv = DepthwiseConv(3, use_bias=False, stride=stride, padding=padding)
    variables = conv.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    kernel = np.asarray(variables["params"]["kernel"], np.float64)[:, :, 0]
    padded = np.pad(x, ((0, 0), *(padding or ((1, 1), (1, 1))), (0, 0)))
    rows, columns = ((n - 3) // stride + 1 for n in padded.shape[1:3])
    expected = np.zeros((1, rows, columns, 2))
    for i, j in np.ndindex(rows, columns):
        window = padded[0, stride * i : stride * i + 3, stride * j : stride * j + 3]
        expected[0, i, j] = (window * kernel).sum(axis=(0, 1))
    got = conv.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_mean_pool_takes_what_there_is_at_the_end_of_an_odd_side(rng):
    x = rng.standard_normal((1, 3, 4, 2))
    expected = np.stack((x[:, :2].mean(axis=1), x[:, 2]), axis=1).reshape(1, 2, 2, 2, 2).mean(3)
    np.testing.assert_allclose(mean_pool(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_layer_norm_uses_its_epsilon(rng, epsilon):
    # Values so small that epsilon decides the result.
    x = 1e-3 * rng.standard_normal((2, 3, 16))
    norm = LayerNorm(epsilon)
    variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    got = norm.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dense_is_a_matrix_product_over_the_last_axis(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5), np.float32))
    dense = Dense(6)
    variables = dense.init(jax.random.key(0), x)
    kernel = rng.standard_normal((5, 6), np.float32)
    bias = rng.standard_normal(6, np.float32)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (5, 6), "bias": (6,)}}
    got = dense.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    exact = np.asarray(x, np.float64) @ kernel.astype(np.float64) + bias
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


def test_parts_without_channels_add_nothing(rng):
    x, kernel = (
        jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 3, 5), (5, 7))
    )
    variables = {"params": {"kernel": kernel, "bias": np.zeros(7, np.float32)}}

    def join(variables, x):
        empty, _ = SplitDense((0, 7)).apply(variables, x)  # (2, 3, 0)
        return JoinDense(7).apply(variables, empty, x, empty)

    np.testing.assert_allclose(join(variables, x), x @ kernel, rtol=1e-5, atol=1e-6)
    gradient = jax.eval_shape(jax.grad(lambda *given: join(*given).sum()), variables, x)
    assert gradient["params"]["kernel"].shape == (5, 7)


def test_gelu_is_the_erf_form(rng):
    x = rng.standard_normal(1000) * 3
    exact = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    # The tanh approximation is off by up to 4.7e-4.
    np.testing.assert_allclose(activation("gelu")(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    np.testing.assert_allclose(
        activation("silu")(jnp.asarray(x, jnp.float32)), x / (1 + np.exp(-x)), atol=1e-6
    )


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((20_000, 2, 3))
    y = np.asarray(DropPath(0.3).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.7)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    # Five standard errors of the share that is kept.
    assert abs((y[:, 0, 0] > 0).mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / 20_000)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0(rng):
    x = jnp.asarray(rng.standard_normal((4, 5), np.float32))
    np.testing.assert_array_equal(DropPath(0.9).apply({}, x, False), x)
    np.testing.assert_array_equal(DropPath(0.0).apply({}, x, True), x)


def test_drop_path_rate_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"drop_path=1\.0 is out of range"):
        drop_path_rates(1.0, (1, 1))
    assert drop_path_rates(0.5, (1,)) == [[0.0]]


# See test_interpolated_positions_equal_pytorchs.
PYTORCH_BICUBIC_SHARP = {
    (5, 3): [
        [-0.154145, -0.0563, 0.459138], [0.316238, 0.866902, 1.835159],
        [1.71007, 3.0125, 4.732524], [4.831904, 6.886101, 9.357894],
        [7.081486, 9.588502, 12.513115],
    ],
    (2, 6): [
        [0.171777, 0.277832, 0.52254, 0.782668, 1.269043, 1.60982],
        [5.234473, 5.978418, 7.266812, 8.269648, 9.799707, 10.778378],
    ],
}  # fmt: skip
PYTORCH_BICUBIC = {
    (2, 4): [1.91647, 3.51666, 6.93863, 10.03712, 26.33132, 32.97417, 43.74115, 51.88231],
    (5, 2): [-0.58999, 1.54575, 2.74602, 8.04105, 11.08828,
             22.13162, 30.31114, 47.10279, 42.12505, 62.07599],
}  # fmt: skip


def cubic_weights(size, new_size):
    """Keys' kernel (1981) with a = -1/2 in float64, widened where it shrinks."""
    step = size / new_size
    weights = np.zeros((new_size, size))
    for i in range(new_size):
        for j in range(size):
            t = abs((i + 0.5) * step - (j + 0.5)) / max(1, step)
            if t < 1:
                weights[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1
            elif t < 2:
                weights[i, j] = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("new_grid", [(24, 24), (7, 7), (9, 20), (1, 3), (14, 5)])
def test_positions_are_interpolated_bicubically_and_the_first_is_kept(rng, new_grid):
    table = rng.standard_normal((1, 1 + 14 * 10, 4))
    got = resize_positions(table.astype(np.float32), (14, 10), new_grid)
    patches = np.einsum(
        "hi,wj,ijc->hwc",
        cubic_weights(14, new_grid[0]),
        cubic_weights(10, new_grid[1]),
        table[0, 1:].reshape(14, 10, 4),
    )
    np.testing.assert_allclose(got[0, 1:], patches.reshape(-1, 4), atol=1e-5)
    np.testing.assert_array_equal(got[0, 0], table[0, 0].astype(np.float32))


def test_interpolated_positions_equal_pytorchs():
    # torch 2.14: F.interpolate(torch.arange(9.).reshape(1, 1, 3, 3).square(), size=SIZE,
    # mode="bicubic", antialias=True); row by row, after a class token of 7.
    table = np.concatenate([[7.0], np.arange(9.0) ** 2]).astype(np.float32).reshape(1, 10, 1)
    for new_grid, expected in PYTORCH_BICUBIC.items():
        got = resize_positions(table, (3, 3), new_grid)
        np.testing.assert_allclose(got[0, :, 0], [7.0, *expected], atol=1e-4)


def test_positions_without_antialias_equal_pytorchs_and_a_token_stays_in_the_middle():
    # torch 2.13: F.interpolate((torch.arange(12.).reshape(1, 1, 3, 4) ** 2 / 10), size=SIZE,
    # mode="bicubic", align_corners=False)
    patches = np.arange(12.0) ** 2 / 10
    for new_grid, expected in PYTORCH_BICUBIC_SHARP.items():
        for middle in (True, False):
            table = np.insert(patches, 6 if middle else 0, 7.0).reshape(1, 13, 1)
            got = resize_positions(
                table.astype(np.float32), (3, 4), new_grid, antialias=False, middle=middle
            )
            wanted = np.insert(np.ravel(expected), len(np.ravel(expected)) // 2 * middle, 7.0)
            np.testing.assert_allclose(got[0, :, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 3])
def test_rotation_turns_pairs_of_channels_by_row_and_column(rng, scale):
    x = rng.standard_normal((2, 6, 8), np.float32)  # a map of 2 rows and 3 columns
    expected = np.empty_like(x)
    for token in range(6):
        places = (token // 3 / 2 * 6 * scale, token % 3 / 3 * 6 * scale)  # from 0 to the side
        for half, position in enumerate(places):
            for pair in range(2):
                angle = position * 10000.0 ** (-2 * pair / 4)
                i = 4 * half + 2 * pair
                turned = (x[:, token, i] + 1j * x[:, token, i + 1]) * np.exp(1j * angle)
                expected[:, token, i], expected[:, token, i + 1] = turned.real, turned.imag
    got = rotate(jnp.asarray(x), *rotation_tables(8, (2, 3), side=6 * scale))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rms_norm_divides_by_the_root_mean_square(rng):
    x, scale = rng.standard_normal((3, 4, 5)), rng.standard_normal(5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
    variables = {"params": {"scale": jnp.asarray(scale, jnp.float32)}}
    got = RMSNorm(0.1).apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    half = RMSNorm(0.1, jnp.bfloat16).apply(variables, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_positions_of_the_same_grid_are_untouched(rng):
    table = rng.standard_normal((1, 7, 2), np.float32)
    assert resize_positions(table, (2, 3), (2, 3)) is table


@pytest.mark.slow
def test_positions_of_a_symbolic_grid_are_those_of_a_known_one(rng):
    table = rng.standard_normal((1, 13, 2), np.float32)

    def resized(x):
        return [
            resize_positions(table, (4, 3), x.shape, antialias=antialias, middle=middle)
            for antialias in (True, False)
            for middle in (True, False)
        ]

    sizes = jax.ShapeDtypeStruct(export.symbolic_shape("h, w"), jnp.float32)
    program = export.export(jax.jit(resized))(sizes)
    for grid in ((4, 3), (2, 5), (9, 1)):  # its own first
        x = np.zeros(grid, np.float32)
        for found, known in zip(program.call(x), resized(x), strict=True):
            np.testing.assert_allclose(found, known, atol=1e-6)


def test_maps_are_interpolated_linearly_between_the_centres_of_pixels():
    x = jnp.asarray([0.0, 1.0, 4.0]).reshape(1, 3, 1, 1)
    larger = resize_linear(x, (6, 1))[0, :, 0, 0]
    np.testing.assert_allclose(larger, [0, 0.25, 0.75, 1.75, 3.25, 4], atol=1e-6)
    smaller = resize_linear(x, (2, 1))[0, :, 0, 0]  # at 0.25 and 1.75 of the three
    np.testing.assert_allclose(smaller, [0.25, 3.25], atol=1e-6)
    assert resize_linear(x, (3, 1)) is x


def test_pooling_to_a_size_takes_means_that_may_overlap():
    third = 1 / 3
    expected = [[third, third, third, 0, 0], [0, 0, third, third, third]]
    np.testing.assert_allclose(pooling_weights(5, 2), expected)
    np.testing.assert_array_equal(pooling_weights(4, 4), np.eye(4))


def test_sinusoids_of_a_grid_tell_columns_before_rows():
    table = grid_sinusoids((2, 3), 8)  # rates 1 and 1 / 100
    assert table.shape == (6, 8)
    row, column = 1, 2
    angles = [(f, place) for place in (column, row) for f in (np.sin, np.cos)]
    expected = [f(place * rate) for f, place in angles for rate in (1, 0.01)]
    np.testing.assert_allclose(table[row * 3 + column], expected)


def test_image_size_is_one_side_or_both():
    assert height_and_width(32) == (32, 32)
    assert height_and_width((16, 48)) == (16, 48)


def test_batch_norm_normalises_with_the_batch_and_follows_it_as_pytorch_does(rng):
    x = 3 * rng.standard_normal((4, 3, 2, 5)) + 2
    scale, bias, mean = rng.standard_normal((3, 5))
    variance = rng.uniform(0.5, 2, 5)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": variance},
    }
    with jax.enable_x64(True):
        norm = BatchNorm(epsilon=1e-3, momentum=0.1)
        trained, updated = norm.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
        evaluated = norm.apply(variables, jnp.asarray(x), False)
    tokens = x.reshape(-1, 5)
    batch = (x - tokens.mean(0)) / np.sqrt(tokens.var(0) + 1e-3) * scale + bias
    np.testing.assert_allclose(trained, batch, rtol=1e-10, atol=1e-12)
    running = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
    np.testing.assert_allclose(evaluated, running, rtol=1e-10, atol=1e-12)
    moments = updated["batch_stats"]
    np.testing.assert_allclose(moments["mean"], 0.9 * mean + 0.1 * tokens.mean(0), rtol=1e-10)
    unbiased = tokens.var(0, ddof=1)
    np.testing.assert_allclose(moments["var"], 0.9 * variance + 0.1 * unbiased, rtol=1e-10)


def test_batch_norm_computes_moments_in_float32_and_returns_the_dtype_asked_for(rng):
    x = jnp.asarray(rng.standard_normal((64, 8, 8, 2)) + 300, jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, False)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["mean"].dtype == jnp.float32
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * exact, rtol=1e-5)


def test_relative_positions_number_the_offsets_row_by_row():
    index = relative_position_index(2, 3)
    assert index.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            down, right = i // 3 - j // 3, i % 3 - j % 3
            assert index[i, j] == (down + 1) * 5 + right + 2


@pytest.mark.parametrize("prefix", [0, 2])
def test_positions_of_tokens_without_a_place_are_kept(rng, prefix):
    table = rng.standard_normal((1, prefix + 6, 4)).astype(np.float32)
    got = resize_positions(table, (2, 3), (4, 3))
    assert got.shape == (1, prefix + 12, 4)
    np.testing.assert_array_equal(got[:, :prefix], table[:, :prefix])


def test_relative_bias_of_another_map_is_interpolated():
    offsets = np.mgrid[-1:2, -2:3].reshape(2, -1).T  # of maps of 2 x 3 tokens
    table = jnp.asarray(offsets @ [[10, 1], [1, 0]], jnp.float32)  # (offsets, heads)
    own = relative_bias(table, (2, 3), (2, 3))
    rows, columns = np.divmod(np.arange(6), 3)
    down, right = rows[:, None] - rows[None], columns[:, None] - columns[None]
    np.testing.assert_array_equal(own[0], [10 * down + right, down])
    larger = relative_bias(table, (2, 3), (4, 3))
    assert larger.shape == (1, 2, 12, 12)
    # Offsets -3 to 3 of the larger map are at -1, -6/7, -3/7, 0, ... of the table's, ends aligned.
    places = np.interp((np.arange(7) + 0.5) * 3 / 7 - 0.5, np.arange(3), [-1, 0, 1])
    rows = np.arange(12) // 3
    np.testing.assert_allclose(larger[0, 1], places[rows[:, None] - rows[None] + 3], atol=1e-6)
