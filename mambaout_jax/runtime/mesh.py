# SPDX-License-Identifier: Apache-2.0
"""The device mesh and the rules that place arrays on it.

The mesh has two axes: a batch is split over both, the training state over `fsdp` only. Parameters
are gathered inside the loss (`train.step`), so that their shardings never reach the activations.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Smaller leaves (in elements) cost more to gather than to keep on every device.
_MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh ("data", "fsdp") over some devices, None for all; `fsdp` divides their number."""
    count = jax.device_count() if devices is None else len(devices)
    # Linen's convolutions do not trace under explicit axes, which are JAX's default.
    axis_types = (AxisType.Auto,) * 2
    return jax.make_mesh(
        (count // fsdp, fsdp), ("data", "fsdp"), axis_types=axis_types, devices=devices
    )


def platform_of(mesh: Mesh) -> str:
    """The platform of the mesh's devices, for example "cpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch, whose examples are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for each leaf: its largest axis that `fsdp` divides is split.

    Small leaves stay whole, and so do depthwise kernels (K, K, 1, C): XLA would carry the split of
    their channels over to the activations.

    Args:
        state: a pytree of arrays or `jax.ShapeDtypeStruct`s.
        mesh: a mesh from `make_mesh`.
    """

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        size = mesh.shape["fsdp"]
        depthwise = len(leaf.shape) == 4 and leaf.shape[2] == 1
        axes = [i for i, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or leaf.size < _MIN_SHARDED_SIZE or depthwise or not axes:
            return replicated(mesh)
        widest = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(
            mesh, PartitionSpec(*("fsdp" if i == widest else None for i in range(widest + 1)))
        )

    return jax.tree.map(sharding, state)


def place(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree, on the host or on devices, under a sharding or a tree of shardings.

    With several processes each must hold all of a host array.
    """
    # A jitted identity is the one way that is right with several processes.
    return jax.jit(lambda x: x, out_shardings=shardings)(tree)


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The global arrays whose local parts are this process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
