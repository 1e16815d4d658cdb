# SPDX-License-Identifier: Apache-2.0
"""Leaves of a state by name: describing them, checking their sums, reading them from disk.

A leaf's name is its path in the state, such as "params/backbone/stem/conv1/kernel".
"""

import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from jax.experimental import multihost_utils

_NAMES_SHOWN = 10
_PARALLEL_READS = 8
_CACHE_BYTES = 64 * 2**20

Leaves = dict[str, Any]
Table = dict[str, dict[str, Any]]  # name -> shape, dtype, crc32


def flatten(state: Any) -> Leaves:
    """The leaves of a pytree by name, in its order."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def describe(leaves: Leaves) -> Table:
    """Shape, dtype and CRC-32 of every leaf. Every process has to call it."""
    return {
        name: {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": _crc32(x)}
        for name, x in leaves.items()
    }


def check(leaves: Leaves, table: Table) -> None:
    """Compares the checksums of leaves that were read. Every process has to call it.

    Raises:
        ValueError: in the first process, if some differ; lists these leaves.
    """
    sums = {name: _crc32(x) for name, x in leaves.items()}
    wrong = [name for name, value in sums.items() if value != table[name]["crc32"]]
    if wrong and jax.process_index() == 0:
        raise ValueError(f"the CRC-32 differs of {_listed(wrong)}")


def match(checkpoint: Path, table: Table, abstract: Leaves) -> None:
    """Compares the leaves of a checkpoint with those that are wanted.

    Raises:
        ValueError: lists the leaves that are missing, unexpected or of another shape or dtype.
    """
    saved = {name: f"{row['dtype']}{row['shape']}" for name, row in table.items()}
    wanted = {name: f"{x.dtype}{list(x.shape)}" for name, x in abstract.items()}
    differing = [
        f"{name} ({saved[name]} in the checkpoint, {wanted[name]} here)"
        for name in wanted
        if name in saved and saved[name] != wanted[name]
    ]
    sides = {
        "missing in the checkpoint": [name for name in wanted if name not in saved],
        "only in the checkpoint": [name for name in saved if name not in wanted],
        "of another shape or dtype": differing,
    }
    lines = [f"\n  {len(names)} {side}: {_listed(names)}" for side, names in sides.items() if names]
    if lines:
        raise ValueError(
            f"the checkpoint {checkpoint} is of another model or optimizer:{''.join(lines)}\nResume"
            " with the settings it was written with, or start in another working directory"
        )


def read(
    folder: Path, table: Table, shardings: Mapping[str, jax.sharding.Sharding | None]
) -> Leaves:
    """Reads leaves that Orbax has written, each process only its own parts of them.

    Through TensorStore and not through Orbax: when one leaf cannot be read, Orbax closes its event
    loop under the other reads, and each of them then writes a traceback to the standard error.

    Args:
        folder: the item of the checkpoint that holds the leaves.
        table: what `describe` returned when they were written.
        shardings: the names to read, and where to place each; None for a `np.ndarray`.

    Raises:
        ValueError: a leaf is missing, damaged so that it cannot be decoded, or not as `table` says.
    """
    # One context for all leaves: the database's own tables are read once.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    def read_one(name: str) -> Any:
        store = tensorstore.open(
            {
                "driver": "auto",
                "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"},
            },
            context=context,
            open=True,
            read=True,
        ).result()
        found = f"{store.dtype.numpy_dtype}{list(store.shape)}"
        written = f"{table[name]['dtype']}{table[name]['shape']}"
        if found != written:
            raise ValueError(f"{name} is {found}, and was written as {written}")
        sharding = shardings[name]
        if sharding is None:
            return store.read().result()
        return jax.make_array_from_callback(
            store.shape, sharding, lambda index: store[index].read().result()
        )

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return dict(zip(shardings, pool.map(read_one, shardings), strict=True))


def _crc32(x: jax.Array | np.ndarray) -> int:
    """CRC-32 of the values in C order; 0 in all processes but the first, which alone compares."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    if jax.process_index() != 0:
        return 0
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
