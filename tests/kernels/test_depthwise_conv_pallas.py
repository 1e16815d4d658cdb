# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the depthwise convolution: interpreted against the oracle, and lowered."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec
from support import oracles
from support.closeness import assert_close
from support.interpreters import force_gpu_interpret_mode

from mambaout_jax.kernels import depthwise_conv_pallas
from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.depthwise_conv_pallas import _conv, _kernel_gradient, tile_of

CASES = {  # maps (B, H, W, C), kernel sides, dtype
    "7x7-two-strips": ((1, 5, 10, 3), (7, 7), "float32"),
    "overlapping-strips-and-tiles": ((1, 2, 9, 130), (3, 5), "float32"),
    "map-smaller-than-kernel": ((2, 2, 1, 4), (7, 5), "float32"),
    "bfloat16": ((2, 4, 3, 6), (5, 3), "bfloat16"),
    "pointwise-one-pixel": ((3, 1, 1, 2), (1, 1), "float32"),
    "images-share-a-block": ((8, 2, 9, 40), (3, 3), "float32"),
    "one-tap-a-row": ((2, 4, 3, 5), (3, 1), "float32"),
}
BY_DEFAULT = ("7x7-two-strips", "images-share-a-block")  # the others run with the slow tests
STAGES = {  # of MambaOut-Tiny
    "stage-0": (8, 56, 56, 96),
    "stage-1": (8, 28, 28, 192),
    "stage-2": (8, 14, 14, 384),
    "stage-3": (8, 7, 7, 576),
}
CALL = "custom_call @mosaic_gpu"


def draw(rng, shape, sides, dtype):
    x, dy = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    return x, jnp.asarray(rng.standard_normal((*sides, shape[-1])), dtype), dy


@jax.jit
def value_and_gradients(x, kernel, dy):
    conv = functools.partial(depthwise_conv, implementation="pallas")
    y, vjp = jax.vjp(conv, x, kernel)
    return y, *vjp(dy)


def abstract(shape, sides, dtype="float32"):
    x = jax.ShapeDtypeStruct(shape, dtype)
    return x, jax.ShapeDtypeStruct((*sides, shape[-1]), dtype), x


def lower(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def assert_lowers(function, *args):
    """To kernels for y and dx, which may share a function, and for the kernel's gradient."""
    assert lower(function, *args).count(CALL) in (2, 3)


def check(rng, *case):
    x, kernel, dy = draw(rng, *case)

    # One case in a program: several interpreted kernels at a time may wait for each other forever.
    def kernels(x, kernel, dy):
        dkernel = _kernel_gradient(x, dy, kernel.shape[:2])
        return _conv(x, kernel), _conv(dy, kernel[::-1, ::-1]), dkernel.astype(x.dtype)

    with force_gpu_interpret_mode():
        actual = jax.jit(kernels)(x, kernel, dy)
    gradients = oracles.depthwise_conv_gradients(x, kernel, dy)
    expected = oracles.depthwise_conv(x, kernel), *gradients
    for ours, value in zip(actual, expected, strict=True):
        assert ours.dtype == x.dtype
        assert_close(ours, value, 1e-6, 2.0**-8 if x.dtype == jnp.bfloat16 else 0.0)


@pytest.mark.parametrize(
    "case",
    [case if case in BY_DEFAULT else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_conv_pallas_matches_oracle(rng, case):
    check(rng, *CASES[case])


def test_conv_pallas_matches_oracle_with_many_narrow_strips_in_a_block(rng, monkeypatch):
    monkeypatch.setattr(depthwise_conv_pallas, "_MAX_VALUES", 23)  # what 2 columns of 3x3 take
    monkeypatch.setattr(depthwise_conv_pallas, "_BLOCKS", 3)  # for 6 strips
    check(rng, (2, 3, 5, 7), (3, 3), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("channels", [1, 8, 48, 64, 96, 100, 128, 192])
def test_conv_pallas_matches_oracle_with_any_number_of_channels(rng, batch, channels):
    check(rng, (batch, 3, 9, channels), (3, 5), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conv_pallas_matches_oracle_on_maps_of_models(rng, dtype):
    check(rng, (2, 14, 14, 192), (7, 7), dtype)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        ("stage-0", "float32"),
        ("stage-3", "bfloat16"),
        *(
            pytest.param(f"stage-{stage}", dtype, marks=pytest.mark.slow)
            for stage, dtype in [(0, "bfloat16"), (1, "float32"), (1, "bfloat16"),
                                 (2, "float32"), (2, "bfloat16"), (3, "float32")]
        ),
    ],
)  # fmt: skip
def test_conv_pallas_lowers_at_stages_of_mambaout(stage, dtype):
    args = abstract(STAGES[stage], (7, 7), dtype)
    assert_lowers(value_and_gradients, *args)


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(7, 7), (13, 13), (51, 1)])
@pytest.mark.parametrize("stage", STAGES)
def test_conv_pallas_lowers_in_other_sizes_and_float16(stage, sides):
    args = abstract(STAGES[stage], sides, "float16")
    assert_lowers(value_and_gradients, *args)


@pytest.mark.parametrize(
    ("batch", "channels", "images", "lanes"),
    [
        (64, 96, 4, 32),
        (64, 192, 2, 64),
        (64, 384, 1, 128),
        (64, 576, 2, 64),
        (64, 48, 8, 16),
        (6, 96, 2, 64),  # two tiles that overlap, where four images do not divide the batch
        (1, 96, 1, 128),
        (8, 5, 8, 16),
    ],
)
def test_a_block_has_the_images_that_leave_fewest_threads_idle(batch, channels, images, lanes):
    assert tile_of(batch, channels) == (images, lanes)


@pytest.mark.parametrize(
    ("batch", "channels", "copies"),
    [(1, 130, False), (1, 96, True), (2, 96, False), (4, 48, False), (8, 15, True)],
)
def test_conv_pallas_copies_only_maps_that_do_not_fill_a_block(batch, channels, copies):
    program = lower(value_and_gradients, *abstract((batch, 5, 9, channels), (3, 3)))
    assert ("stablehlo.pad" in program) == copies


def test_conv_pallas_lowers_with_a_dilation():
    def dilated(x, kernel):
        return depthwise_conv(x, kernel, dilation=3, implementation="pallas")

    x, kernel, _ = abstract((2, 7, 8, 4), (7, 7))
    assert lower(dilated, x, kernel).count(CALL) == 1
    assert_lowers(lambda *args: jax.vjp(dilated, *args[:2])[1](args[2]), x, kernel, x)


def test_conv_pallas_lowers_under_vmap():
    x, kernel, dy = (jnp.ones((2, *a.shape), a.dtype) for a in abstract((1, 4, 5, 3), (3, 3)))
    assert_lowers(jax.vmap(value_and_gradients), x, kernel, dy)


def test_conv_pallas_lowers_in_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        value_and_gradients,
        mesh=mesh,
        in_specs=(data, whole, data),
        out_specs=(data, data, whole),
        check_vma=False,
    )
    assert_lowers(sharded, *abstract((4, 5, 6, 3), (3, 3)))


def gradient(x, kernel):
    return jax.grad(lambda x: depthwise_conv(x, kernel, implementation="pallas").sum())(x)


@pytest.mark.parametrize(
    "call", [functools.partial(depthwise_conv, implementation="pallas"), gradient]
)
@pytest.mark.parametrize("jit", [False, True])
def test_conv_pallas_on_a_cpu_says_what_it_needs(call, jit):
    with pytest.raises(ValueError, match=r'for cpu, but needs an NVIDIA GPU .*"auto"'):
        (jax.jit(call) if jit else call)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2)))


def test_conv_pallas_refuses_float64():
    with jax.enable_x64(True), pytest.raises(ValueError, match=r'got float64.*"lax"'):
        depthwise_conv(
            jnp.ones((1, 4, 4, 2), "float64"), jnp.ones((3, 3, 2)), implementation="pallas"
        )


def test_conv_pallas_refuses_more_taps_than_fit():
    x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((15, 15, 2))
    conv = functools.partial(depthwise_conv, implementation="pallas")
    with pytest.raises(ValueError, match=r'got 15 x 15 taps .*more than the registers.*"lax"'):
        conv(x, kernel)
    # On a map of 4 rows only 7 of the 15 rows of taps meet the map.
    assert lower(conv, x[:, :4], kernel).count(CALL) == 1
