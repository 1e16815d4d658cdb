# SPDX-License-Identifier: Apache-2.0
"""The mixers that the scan benchmark compares, the rows it makes of them, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from mambaout_jax.benchmarks import scan_mixers
from mambaout_jax.benchmarks.scan_bounds import Amounts
from mambaout_jax.benchmarks.scan_mixers import (
    MapConv,
    Settings,
    make_parameters,
    measure_mixers,
    measure_scans,
)
from mambaout_jax.benchmarks.timing import Limits
from mambaout_jax.models.mambaout import BlockOptions, GatedCNNBlock

pytestmark = pytest.mark.long

PLENTY = Limits(memory=2**30, seconds=60)
WIDTH = 8


def settings(*mixers, limits=PLENTY, dtype="float32"):
    return Settings(mixers, 2, dtype, 128, 2, limits)


def measure(length, wanted, previous=None):
    parameters = make_parameters(WIDTH, wanted)
    return measure_mixers(parameters, WIDTH, length, wanted, {} if previous is None else previous)


def test_conv_is_the_depthwise_convolution_of_the_map(rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 4)), jnp.float32)
    variables = MapConv().init(jax.random.key(0), x)
    y = MapConv().apply(variables, x)
    kernel = variables["params"]["conv"]["kernel"][:, :, 0]
    expected = oracles.depthwise_conv(x.reshape(2, 3, 3, 4), kernel).reshape(2, 9, 4)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    block = GatedCNNBlock(BlockOptions()).init(
        jax.random.key(0), jnp.zeros((1, 3, 3, 4)), train=False
    )
    shapes = [jax.tree.map(jnp.shape, tree["params"]["conv"]) for tree in (variables, block)]
    assert shapes[0] == shapes[1]


def test_scans_and_attentions_share_their_parameters():
    parameters = make_parameters(
        64, settings("sequential", "pallas", "attention", "causal_attention")
    )
    same = jax.tree.map(np.array_equal, parameters["sequential"], parameters["pallas"])
    assert all(jax.tree.leaves(same))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in parameters.items()
    }
    # A_log, D, x_proj and dt_proj at N = 2 and R = 4; qkv and proj, with biases.
    assert counts["sequential"] == 64 * 2 + 64 + 64 * (4 + 2 * 2) + (4 + 1) * 64
    assert counts["attention"] == counts["causal_attention"] == 4 * 64 * 64 + 4 * 64


def test_backward_pass_has_the_gradients_of_all_inputs():
    run = scan_mixers._pass("forward+backward", lambda scale, x: scale * x)
    scale, x, dy = (jnp.array([value]) for value in (2.0, 3.0, 5.0))
    assert [float(value[0]) for value in run((scale, x), dy)] == [6.0, 15.0, 10.0]
    assert float(scan_mixers._pass("forward", lambda scale, x: scale * x)((scale, x), dy)[0]) == 6


@pytest.mark.slow
def test_rows_hold_what_was_measured():
    wanted = settings("conv", "sequential", "chunked", "attention")
    previous = {}
    rows = measure(16, wanted, previous)
    assert [(row["mixer"], row["pass"]) for row in rows] == [
        (mixer, name) for name in ("forward", "forward+backward") for mixer in wanted.mixers
    ]
    for row in rows:
        assert (row["width"], row["length"], row["batch"]) == (WIDTH, 16, 8)
        assert row["state_size"] == (2 if row["mixer"] in ("sequential", "chunked") else None)
        assert row["status"] == "measured"
        assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["tokens_per_second"] == pytest.approx(128 / row["median_ms"] * 1e3)
        assert previous[row["mixer"], row["pass"]] is row
    forward, backward = rows[:4], rows[4:]
    assert forward[0]["over_conv"] == backward[0]["over_conv"] == 1
    low = forward[2]["min_ms"] / forward[0]["max_ms"]
    assert low <= forward[2]["over_conv"] <= forward[2]["max_ms"] / forward[0]["min_ms"]
    assert forward[3]["temp_bytes"] >= 8 * 16 * 16 * 4  # scores of one head
    # Results and gradients: of tokens, and of the kernel and bias of the convolution.
    outputs = 2 * 128 * WIDTH * 4 + (49 + 1) * WIDTH * 4
    inputs = 2 * 128 * WIDTH * 4 + (49 + 1) * WIDTH * 4
    needed = backward[0]["needed_bytes"] - backward[0]["temp_bytes"]
    assert 0 <= needed - inputs - outputs < 256  # the table of a tuple of results


def test_too_little_memory_is_a_row():
    rows = measure(16, settings("conv", limits=Limits(100, 60)))
    for row in rows:
        assert row["status"] == "too large"
        assert row["needed_bytes"] > 128 * WIDTH * 4
        assert row["note"] == f"needs {row['needed_bytes']:,} bytes, and 100 may be used"
        assert row["median_ms"] is row["tokens_per_second"] is row["over_conv"] is None


def test_too_little_time_is_a_row_with_the_estimate():
    row = {"batch": 4, "length": 8, "median_ms": None, "call_seconds": 30.0}
    previous = {
        (mixer, name): row | {"mixer": mixer}
        for mixer in ("conv", "attention")
        for name in ("forward", "forward+backward")
    }
    rows = measure(16, settings("conv", "attention"), previous)
    assert {row["status"] for row in rows} == {"too slow"}
    # 4 times the tokens, and in attention twice as many to look at.
    assert [row["call_seconds"] for row in rows] == [120, 240, 120, 240]
    assert rows[1]["note"] == "would take 960 s for 4 calls, and 60 s may be used"


def test_estimate_prefers_the_median_to_the_trial():
    row = {"mixer": "conv", "batch": 2, "length": 8, "median_ms": 4.0, "call_seconds": 1.0}
    assert scan_mixers._estimate(row, 1, 32) == pytest.approx(0.008)
    assert scan_mixers._estimate(None, 1, 32) is None


def test_length_without_a_map_is_an_error_of_the_convolution_alone():
    rows = measure(50, settings("conv", "chunked"))
    notes = {row["mixer"]: (row["status"], row["note"]) for row in rows}
    words = "50 tokens are not a square map; use 49 or 64"
    assert notes == {"conv": ("error", words), "chunked": ("measured", "")}
    assert {row["over_conv"] for row in rows} == {None}


def test_pallas_on_a_cpu_is_an_error_row_of_one_long_sequence():
    rows = measure(256, settings("pallas"))  # more tokens than a call should have
    assert {(row["status"], row["batch"]) for row in rows} == {("error", 1)}
    assert "needs an NVIDIA GPU" in rows[0]["note"]


def test_dtype_is_that_of_tokens_and_not_of_parameters():
    forward = measure(16, settings("conv", dtype="bfloat16"))[0]
    outside = forward["needed_bytes"] - forward["temp_bytes"]
    assert outside == 2 * 128 * WIDTH * 2 + (49 + 1) * WIDTH * 4


def test_scans_alone_are_held_against_chunked_and_its_bound():
    rates = Amounts(exponentials=1e6, multiply_adds=1e9, bytes=1e9)
    # There is no limit of time.
    rows = measure_scans((2, 16, 8, 2, 2), settings(limits=Limits(2**30, 0)), rates)
    names = ("sequential", "associative", "chunked")
    assert [row["mixer"] for row in rows] == [*names, *names]
    for three in (rows[:3], rows[3:]):
        chunked = three[2]
        assert (chunked["time_over_chunked"], chunked["memory_over_chunked"]) == (1, 1)
        for row in three:
            assert (row["state_size"], row["groups"]) == (2, 2)
            assert (row["bound"] is None) == (row["of_bound"] is None) == (row is not chunked)
            assert row["memory_over_chunked"] == row["temp_bytes"] / chunked["temp_bytes"]
            low, high = row["min_ms"] / chunked["max_ms"], row["max_ms"] / chunked["min_ms"]
            assert low <= row["time_over_chunked"] <= high
    # The gradient of associative keeps arrays of all tokens and states, that of chunked does not.
    assert rows[4]["temp_bytes"] > 2 * 16 * 8 * 2 * 4 > 0
    assert rows[4]["memory_over_chunked"] > 1
    # 256 channels of tokens, each with four exponentials a pass, of which there are two.
    for chunked, milliseconds in ((rows[2], 1.024), (rows[5], 2.048)):
        assert chunked["bound"]["exponentials"] == pytest.approx(milliseconds)
        assert chunked["of_bound"] == pytest.approx(milliseconds / chunked["median_ms"])


def test_scans_alone_have_what_models_give_them():
    (u, delta, A, B, C, D), dy = scan_mixers._scan_inputs((2, 16, 8, 3, 4), "bfloat16")
    assert u.shape == delta.shape == dy.shape == (2, 16, 8)
    assert B.shape == C.shape == (2, 16, 4, 3)
    assert {x.dtype for x in (u, delta, B, C, dy)} == {jnp.dtype("bfloat16")}
    assert (A.dtype, D.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_array_equal(A, -np.broadcast_to([1.0, 2.0, 3.0], (8, 3)))
    np.testing.assert_array_equal(D, np.ones(8))
    step = np.log1p(np.exp(np.asarray(delta, np.float32)))
    assert 0.0009 < step.min() < step.max() < 0.102
