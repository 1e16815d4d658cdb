# SPDX-License-Identifier: Apache-2.0
"""Where arrays lie: rules by shape, bytes by device, batches by process."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mambaout_jax.config import default_config
from mambaout_jax.models import create_model, parameter_rules
from mambaout_jax.runtime.mesh import (
    batch_sharding,
    make_mesh,
    put_batch,
    replicated,
    state_shardings,
)
from mambaout_jax.train.optimizer import make_optimizer
from mambaout_jax.train.state import init_state


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_mesh_has_every_device_once(fsdp):
    mesh = make_mesh(fsdp)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices())
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((512, 128), PartitionSpec("fsdp")),
        ((128, 512), PartitionSpec(None, "fsdp")),
        ((256, 256), PartitionSpec(None, "fsdp")),  # of equal axes the last
        ((510, 128), PartitionSpec(None, "fsdp")),  # 4 does not divide the largest
        ((3, 3, 64, 96), PartitionSpec(None, None, None, "fsdp")),
        ((3, 3, 128, 30), PartitionSpec(None, None, "fsdp")),
        ((2**14,), PartitionSpec("fsdp")),
        ((2**14 - 4,), PartitionSpec()),  # small
        ((7, 7, 1, 4096), PartitionSpec()),  # depthwise
        ((255, 255), PartitionSpec()),  # nothing divides
        ((), PartitionSpec()),
    ],
)
def test_state_shardings_split_the_largest_axis_that_divides(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert state_shardings({"x": leaf}, make_mesh(4))["x"].spec == spec
    assert state_shardings({"x": leaf}, make_mesh(1))["x"].spec == PartitionSpec()


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_a_device_holds_its_share_of_parameters_moments_and_average(fsdp):
    model = create_model("mambaout_micro", 10, depths=(1, 1), dims=(64, 128))
    optimizer = make_optimizer(
        default_config().optimizer, lambda step: 1e-3, parameter_rules("mambaout_tiny")
    )
    shapes = jax.eval_shape(
        lambda key: init_state(key, model, optimizer, (32, 32, 3), with_ema=True),
        jax.random.key(0),
    )
    mesh = make_mesh(fsdp)
    state = jax.tree.map(
        lambda leaf, sharding: jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding),
        shapes,
        state_shardings(shapes, mesh),
    )
    # Large are both fc1, fc2 of the second stage, two convolutions and the head's hidden layer.
    large = 64 * 340 + 128 * 682 + 341 * 128 + 9 * 32 * 64 + 9 * 64 * 128 + 128 * 512
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))
    assert large > 0.9 * total
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu, state.ema):
        for device in jax.devices():
            held = sum(
                shard.data.nbytes
                for leaf in jax.tree.leaves(tree)
                for shard in leaf.addressable_shards
                if shard.device == device
            )
            assert held == 4 * (total - large + large // fsdp)


def test_put_batch_gives_each_device_neighbouring_examples(rng):
    batch = {
        "image": rng.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8),
        "label": np.arange(16, dtype=np.int32),
    }
    mesh = make_mesh(2)
    placed = put_batch(batch, mesh)
    for name, value in batch.items():
        assert placed[name].dtype == value.dtype
        np.testing.assert_array_equal(placed[name], value)
        shards = {shard.device: shard.data for shard in placed[name].addressable_shards}
        for number, device in enumerate(mesh.devices.flat):
            np.testing.assert_array_equal(shards[device], value[2 * number : 2 * number + 2])


def test_replicated_is_whole_and_batches_are_split_on_every_device():
    mesh = make_mesh(4)
    assert replicated(mesh).shard_shape((16, 3)) == (16, 3)
    assert batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
