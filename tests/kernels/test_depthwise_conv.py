# SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution: values, gradients, and what becomes of it in compiled programs."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
import scipy.signal
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import oracles
from support.closeness import assert_close

from mambaout_jax.kernels.depthwise_conv import IMPLEMENTATIONS, depthwise_conv

ON_CPU = [name for name in IMPLEMENTATIONS if name != "pallas"]
CASES = {  # maps (B, H, W, C) and kernel sides
    "7x7": ((3, 14, 14, 4), (7, 7)),
    "not-square": ((1, 9, 17, 3), (3, 7)),
    "map-smaller-than-kernel": ((2, 2, 2, 5), (7, 7)),
    "one-row": ((2, 1, 3, 2), (7, 3)),
    "one-channel": ((5, 8, 6, 1), (5, 5)),
    "pointwise": ((2, 5, 4, 3), (1, 1)),
    "uneven-tiles": ((1, 13, 31, 2), (3, 3)),
    "groups-of-kernel-rows": ((1, 12, 20, 2), (11, 9)),
    "colliding-maps": ((2, 5, 6, 128), (3, 5)),  # more channels than asked for in memory
    "colliding-gradients": ((1, 4, 3, 256), (5, 3)),
    "colliding-groups-of-rows": ((1, 5, 6, 128), (9, 11)),
}
DILATED = {  # maps, kernel sides, dilation
    "two-apart": ((2, 9, 17, 3), (3, 5), 2),
    "taps-beyond-the-map": ((1, 5, 10, 2), (7, 7), 3),
    "all-but-one-beyond": ((2, 4, 3, 2), (3, 3), 4),
    "groups-of-rows-apart": ((1, 12, 20, 2), (11, 9), 2),
}
EPSILON = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 1e-6}
ROUNDING = {"float64": 0.0, "float32": 0.0, "bfloat16": 2.0**-8}  # of a result, relative


def draw(rng, shape, dtype):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def value_and_gradients(x, kernel, dy, implementation, dilation=1):
    conv = functools.partial(depthwise_conv, implementation=implementation, dilation=dilation)
    y, vjp = jax.vjp(conv, x, kernel)
    return y, *vjp(dy)


def reference(x, kernel, dy, dilation=1):
    gradients = oracles.depthwise_conv_gradients(x, kernel, dy, dilation)
    return oracles.depthwise_conv(x, kernel, dilation), *gradients


@pytest.mark.parametrize("implementation", ["lax", "shift"])  # "auto" is one of them
@pytest.mark.parametrize(
    "dtype",
    [
        dtype if dtype == "float32" else pytest.param(dtype, marks=pytest.mark.slow)
        for dtype in EPSILON
    ],
)
def test_depthwise_conv_matches_oracle(rng, dtype, implementation):
    cases = [*((*case, 1) for case in CASES.values()), *DILATED.values()]
    dilations = [dilation for *_, dilation in cases]

    def run(drawn):
        pairs = zip(drawn, dilations, strict=True)
        return [value_and_gradients(*arrays, implementation, apart) for arrays, apart in pairs]

    with jax.enable_x64(dtype == "float64"):
        drawn = []
        for shape, sides, _ in cases:
            x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
            drawn.append((x, draw(rng, (*sides, shape[-1]), dtype), dy))
        results = jax.jit(run)(drawn)  # one program
    for arrays, apart, actual in zip(drawn, dilations, results, strict=True):
        for ours, expected in zip(actual, reference(*arrays, apart), strict=True):
            assert ours.dtype == dtype
            assert_close(ours, expected, EPSILON[dtype], ROUNDING[dtype])


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_matches_scipy(rng, implementation):
    x, kernel = draw(rng, (1, 10, 12, 1), "float32"), draw(rng, (5, 7, 1), "float32")
    y = depthwise_conv(x, kernel, implementation=implementation)
    expected = scipy.signal.correlate2d(x[0, :, :, 0], kernel[:, :, 0], mode="same")
    assert_close(y[0, :, :, 0], expected, 1e-6)


@pytest.mark.parametrize(("shape", "side"), [((2, 5, 4, 3), 1), ((3, 1, 1, 2), 7)])
def test_depthwise_conv_auto_with_one_tap_matches_oracle(rng, shape, side):
    x, dy = draw(rng, shape, "float32"), draw(rng, shape, "float32")
    kernel = draw(rng, (side, side, shape[-1]), "float32")
    actual = value_and_gradients(x, kernel, dy, "auto")
    for ours, expected in zip(actual, reference(x, kernel, dy), strict=True):
        assert_close(ours, expected, 1e-6)


def test_depthwise_conv_shift_stays_accurate_on_large_maps(rng):
    shape = (8, 56, 56, 16)
    x, dy = draw(rng, shape, "float32"), draw(rng, shape, "float32")
    kernel = draw(rng, (7, 7, 16), "float32")
    y, dx, dkernel = value_and_gradients(x, kernel, dy, "shift")
    expected = reference(x, kernel, dy)
    assert_close(y, expected[0], 1e-6)
    assert_close(dx, expected[1], 1e-6)
    assert_close(dkernel, expected[2], 1e-5)  # a sum of 25088 products per tap


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_promotes_and_returns_gradients_in_input_dtypes(rng, implementation):
    x, kernel = draw(rng, (2, 6, 5, 3), "bfloat16"), draw(rng, (3, 3, 3), "float32")
    dy = draw(rng, x.shape, "float32")
    y, dx, dkernel = value_and_gradients(x, kernel, dy, implementation)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    expected = reference(x, kernel, dy)
    assert_close(y, expected[0], 1e-6)
    assert_close(dx, expected[1], 1e-6, 2.0**-8)
    assert_close(dkernel, expected[2], 1e-6)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_maps_over_an_extra_axis(rng, implementation):
    x, dy = draw(rng, (3, 2, 5, 6, 4), "float32"), draw(rng, (3, 2, 5, 6, 4), "float32")
    kernel = draw(rng, (3, 3, 4), "float32")
    function = functools.partial(value_and_gradients, implementation=implementation)
    mapped = jax.vmap(function, in_axes=(0, None, 0))(x, kernel, dy)
    for index in range(3):
        expected = reference(x[index], kernel, dy[index])
        for ours, value in zip(mapped, expected, strict=True):
            assert_close(ours[index], value, 1e-6)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_has_second_derivatives(rng, implementation):
    x, kernel = draw(rng, (2, 6, 7, 3), "float32"), draw(rng, (3, 5, 3), "float32")
    vector = draw(rng, kernel.shape, "float32")

    def directional(kernel):
        def half_square(kernel):
            return (depthwise_conv(x, kernel, implementation=implementation) ** 2).sum() / 2

        return (jax.grad(half_square)(kernel) * vector).sum()

    # y is linear in the kernel, so that the Hessian of Σ y² / 2 maps v to dkernel(dy = y(v)).
    _, expected = oracles.depthwise_conv_gradients(x, kernel, oracles.depthwise_conv(x, vector))
    assert_close(jax.grad(directional)(kernel), expected, 1e-5)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_keeps_a_sharded_batch_in_place(rng, implementation):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x, dy = (jax.device_put(draw(rng, (16, 9, 7, 4), "float32"), batch) for _ in range(2))
    kernel = jax.device_put(draw(rng, (7, 7, 4), "float32"), whole)
    step = jax.jit(value_and_gradients, static_argnums=3)
    compiled = step.lower(x, kernel, dy, implementation).compile()
    y, dx, dkernel = compiled(x, kernel, dy)
    for ours, expected in zip((y, dx, dkernel), reference(x, kernel, dy), strict=True):
        assert_close(ours, expected, 1e-6)
    assert y.sharding.is_equivalent_to(batch, 4)
    assert dx.sharding.is_equivalent_to(batch, 4)
    program = compiled.as_text()
    assert "all-reduce" in program  # of the kernel's gradient
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize(
    ("platform", "shape", "side", "convolutions"),
    [
        ("cpu", (2, 8, 8, 4), 3, 0),
        ("cpu", (2, 8, 8, 4), 1, 0),
        ("cuda", (2, 8, 8, 4), 3, 3),
        ("tpu", (2, 8, 8, 4), 3, 3),
        ("tpu", (2, 8, 8, 4), 1, 3),
    ],
)
def test_depthwise_conv_auto_follows_platform_and_shape(platform, shape, side, convolutions):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((side, side, 4), jnp.float32)
    traced = jax.jit(value_and_gradients, static_argnums=3).trace(x, kernel, x, "auto")
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize(("size", "side"), [((8, 8), 1), ((1, 1), 7)])
def test_depthwise_conv_shift_with_one_tap_is_a_product(size, side):
    x = jax.ShapeDtypeStruct((2, *size, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((side, side, 4), jnp.float32)
    conv = functools.partial(depthwise_conv, implementation="shift")
    program = jax.jit(conv).lower(x, kernel).as_text()
    assert program.count("stablehlo.multiply") == 1
    assert "stablehlo.while" not in program


def test_depthwise_conv_shift_is_not_fused_with_its_neighbours():
    def stack(x, kernel):
        for _ in range(3):
            x = jnp.tanh(depthwise_conv(x, kernel, implementation="shift"))
            x = x - x.mean(axis=-1, keepdims=True)
        return x

    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4), jnp.float32)
    blocks = jax.jit(stack).lower(x, kernel).compile().as_text().split("\n}\n")
    sums = [block for block in blocks if block.count(" multiply(") == 9]
    assert len(sums) == 3
    assert not any(" tanh(" in block for block in sums)
    assert sum(block.count(" tanh(") for block in blocks) >= 3


@pytest.mark.parametrize("implementation", ON_CPU)
def test_depthwise_conv_spends_nothing_on_taps_outside_the_map(implementation):
    def flops(side):
        x = jax.ShapeDtypeStruct((2, 2, 2, 4), jnp.float32)
        kernel = jax.ShapeDtypeStruct((side, side, 4), jnp.float32)
        lowered = jax.jit(value_and_gradients, static_argnums=3).lower(x, kernel, x, implementation)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(51) == flops(3) > 0


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "dtype", "options", "message"),
    [
        ((1, 4, 4, 2), (3, 3, 2), "float32", {"implementation": "winograd"}, "'auto', 'lax', 'sh"),
        ((4, 4, 2), (3, 3, 2), "float32", {}, r"float32\(4, 4, 2\).*must be \(B, H, W, C\)"),
        ((1, 4, 4, 2), (3, 3, 1, 2), "float32", {}, r"\(3, 3, 1, 2\).*kernel \(KH, KW, C\)"),
        ((1, 4, 4, 2), (3, 3, 1), "float32", {}, r"\(1, 4, 4, 2\).*\(3, 3, 1\).*same number of"),
        ((1, 4, 4, 2), (2, 3, 2), "float32", {}, r"\(2, 3, 2\).*must be odd"),
        ((1, 4, 4, 2), (3, 4, 2), "float32", {}, r"\(3, 4, 2\).*must be odd"),
        ((1, 4, 4, 2), (3, 3, 2), "int32", {}, r"int32\(1, 4, 4, 2\).*must be floating"),
        ((1, 4, 4, 2), (3, 3, 2), "float32", {"dilation": 0}, "dilation=0 must be a whole number"),
    ],
)
def test_depthwise_conv_rejects(monkeypatch, x_shape, kernel_shape, dtype, options, message):
    # The annotations would speak first here; users run without that check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.ones(x_shape, dtype), jnp.ones(kernel_shape, dtype), **options)
