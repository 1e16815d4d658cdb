# SPDX-License-Identifier: Apache-2.0
"""What scan_pallas refuses, and that its programs go through JAX's transformations.

Its numbers are in the tests of the kernels of each platform.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import scan_kernels

from mambaout_jax.kernels.selective_scan_pallas import scan_pallas

CALLS = {"cuda": "custom_call @mosaic_gpu", "tpu": "custom_call @tpu_custom_call"}


def arguments(shape=(2, 5, 4, 3, 1)):
    return scan_kernels.draw(np.random.default_rng(0), shape, "float32")[0]


def gradient(*arrays):
    return jax.grad(lambda *arrays: scan_pallas(*arrays, False)[0].sum(), argnums=range(7))(*arrays)


@pytest.mark.parametrize("call", [functools.partial(scan_pallas, reverse=False), gradient])
@pytest.mark.parametrize("jit", [False, True])
def test_scan_pallas_on_a_cpu_says_what_it_needs(call, jit):
    with pytest.raises(ValueError, match=r'for cpu, but needs an NVIDIA GPU .*or a TPU.*"chunked"'):
        (jax.jit(call) if jit else call)(*arguments())


def test_scan_pallas_refuses_float64():
    with jax.enable_x64(True):
        u, delta, *others = arguments()
        with pytest.raises(ValueError, match=r'delta in float64.*"chunked"'):
            scan_pallas(u, delta.astype(jnp.float64), *others, False)


def test_scan_pallas_refuses_more_states_than_fit():
    with pytest.raises(ValueError, match=r'N = 33 states .* 32; use implementation="chunked"'):
        scan_pallas(*arguments((1, 5, 4, 33, 1)), False)


@pytest.mark.parametrize("platform", CALLS)
def test_scan_pallas_lowers_under_vmap(platform):
    def stacked(*arrays):
        return jax.vmap(gradient)(*(jnp.stack([x, x]) for x in arrays))

    program = jax.jit(stacked).trace(*arguments()).lower(lowering_platforms=(platform,))
    assert program.as_text().count(CALLS[platform]) == 2


@pytest.mark.parametrize("platform", CALLS)
def test_scan_pallas_lowers_in_shard_map_and_remat(platform):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    scan = jax.shard_map(
        jax.checkpoint(functools.partial(scan_pallas, reverse=False)),
        mesh=mesh,
        in_specs=(data, data, whole, data, data, whole, data),
        out_specs=(data, data),
        check_vma=False,
    )
    gradient = jax.grad(lambda *arrays: scan(*arrays)[0].sum(), argnums=range(7))
    program = jax.jit(gradient).trace(*arguments()).lower(lowering_platforms=(platform,))
    assert program.as_text().count(CALLS[platform]) == 2
