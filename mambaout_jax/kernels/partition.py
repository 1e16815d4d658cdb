# SPDX-License-Identifier: Apache-2.0
"""Kernels that the compiler cannot split among devices, split by batch."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec


def split_by_batch(
    function: Callable, *, whole: tuple[int, ...] = (), add_up: bool = False
) -> Callable:
    """A function of which every device computes what becomes of its own examples.

    XLA's partitioner cannot look into a Pallas kernel and refuses a program in which one gets
    arrays of a mesh. Here the batch is spread over the axes of the mesh, as training spreads it, by
    `jax.shard_map`; what was split otherwise is moved. (`custom_partitioning` would ask how arrays
    are split and not presume it, but the compiler for TPUs does not know it.)

    Args:
        function: of arrays, to a tree of them; the batch is the first axis of all.
        whole: positions of arguments that have no batch, such as weights.
        add_up: the results have no batch either, and are sums over the examples.

    Returns:
        The same function for arrays of a mesh, of one device, or inside of `jax.shard_map`. An
        array tells its mesh unless it is an abstract one without a sharding.
    """

    def run(*arrays: jax.Array) -> Any:
        batch = next(x.shape[0] for i, x in enumerate(arrays) if i not in whole)
        mesh = _mesh_of(arrays)
        if mesh is None:
            return function(*arrays)
        axes = _axes_of(mesh, batch)
        split, everywhere = PartitionSpec(axes or None), PartitionSpec()

        def local(*arrays):
            found = function(*arrays)
            return lax.psum(found, axes) if add_up and axes else found

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=tuple(everywhere if i in whole else split for i in range(len(arrays))),
            out_specs=everywhere if add_up else split,
            check_vma=False,  # kernels do not say over which axes their results vary
        )(*arrays)

    return jax.jit(run)


def _mesh_of(arrays: Any) -> Any:
    """The mesh whose axes the compiler would split arrays over; None where there is none."""
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        if not mesh.empty and mesh.size > 1:
            return mesh if all(kind == AxisType.Auto for kind in mesh.axis_types) else None
    return None


def _axes_of(mesh: Any, batch: int) -> tuple[str, ...]:
    """The axes over which a batch is spread: as many of the first ones as divide it."""
    axes: tuple[str, ...] = ()
    for name in mesh.axis_names:
        if batch % math.prod(mesh.shape[axis] for axis in (*axes, name)):
            break
        axes = (*axes, name)
    return axes
