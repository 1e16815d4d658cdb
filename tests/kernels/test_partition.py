# SPDX-License-Identifier: Apache-2.0
"""Kernels split by batch: same numbers on any mesh, and nothing gathered that need not be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import oracles, scan_kernels
from support.closeness import assert_close
from support.interpreters import INTERPRETERS

from mambaout_jax.kernels.partition import split_by_batch

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("batch", "spec", "collectives"),
    [
        (16, PartitionSpec(("data", "fsdp")), {"all-reduce"}),  # of the sum over examples
        (12, PartitionSpec("data"), {"all-reduce"}),  # eight devices do not divide it
        (3, PartitionSpec(), set()),
        (16, PartitionSpec(None, "fsdp"), {"all-reduce", "all-to-all"}),  # a kernel needs it whole
    ],
)
def test_examples_stay_where_they_are(rng, batch, spec, collectives):
    scale = split_by_batch(lambda x, w: (x.cumsum(1) * w[None], x.sum((1, 2))), whole=(1,))
    product = split_by_batch(lambda x, y: jnp.einsum("bld,ble->de", x, y), add_up=True)
    x, w = rng.standard_normal((batch, 6, 4)), rng.standard_normal((6, 4))
    on_mesh = jax.device_put(jnp.asarray(x, "float32"), NamedSharding(mesh(), spec))

    def function(x, w):
        return *scale(x, w), product(x, x + 1)

    compiled = jax.jit(function).lower(on_mesh, jnp.asarray(w, "float32")).compile()
    scaled, sums, products = compiled(on_mesh, jnp.asarray(w, "float32"))
    assert_close(scaled, x.cumsum(1) * w, 1e-6)
    assert_close(sums, x.sum((1, 2)), 1e-6)
    assert_close(products, np.einsum("bld,ble->de", x, x + 1), 1e-6)
    assert {word for word in COLLECTIVES if word in compiled.as_text()} == collectives


def test_a_split_function_maps_over_an_extra_axis(rng):
    scale = split_by_batch(lambda x, w: x * w[None], whole=(1,))
    x, w = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 4))
    assert_close(jax.vmap(scale)(x, w), x * w[:, None], 1e-6)
    assert_close(jax.vmap(scale, (0, None))(x, w[0]), x * w[0], 1e-6)


@pytest.mark.slow
def test_the_kernels_of_a_sharded_scan_see_their_own_images(rng):
    shape, reverse = (8, 6, 5, 3, 1), True
    arrays, cotangents = scan_kernels.draw(rng, shape, "float32")
    batch, whole = (NamedSharding(mesh(), PartitionSpec(*x)) for x in ((("data", "fsdp"),), ()))
    where = tuple(whole if name in "AD" else batch for name in scan_kernels.NAMES)
    arrays, cotangents = jax.device_put((arrays, cotangents), (where, batch))

    def run(arrays, cotangents):
        scan = functools.partial(scan_kernels.interpreted, platform="tpu", reverse=reverse)
        outputs, vjp = jax.vjp(scan, *arrays)
        return outputs, vjp(cotangents)

    with INTERPRETERS["tpu"]():
        compiled = jax.jit(run).lower(arrays, cotangents).compile()
        (y, state), gradients = compiled(arrays, cotangents)
    named = dict(zip(scan_kernels.NAMES, arrays, strict=True))
    wanted_y, wanted_state, wanted = oracles.selective_scan(named, *cotangents, reverse=reverse)
    assert_close(y, wanted_y, 3e-6)
    assert_close(state, wanted_state, 3e-6)
    for ours, value in zip(gradients, wanted.values(), strict=True):
        assert_close(ours, value, 3e-6)
    assert "all-gather" not in compiled.as_text()
