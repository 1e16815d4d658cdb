# SPDX-License-Identifier: Apache-2.0
"""Reads files of weights, in whichever format they are: see `weights.formats`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from mambaout_jax.weights.formats import format_of
from mambaout_jax.weights.read import read_torch_file
from mambaout_jax.weights.state_dicts import find_state_dict

_SHOWN = 8


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """`safetensors.safe_open`, for numpy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not a safetensors file.
    """
    if format_of(path) != "safetensors":
        raise ValueError(f"{path} is a file of torch.save, not a safetensors file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Download or copy it again") from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata.

    Raises:
        FileNotFoundError, ValueError: as `open_safetensors`; numpy has no dtype for a tensor.
    """
    tensors = {}
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118
            dtype = file.get_slice(key).get_dtype()
            try:
                tensors[key] = file.get_tensor(key)
            except (TypeError, AttributeError, KeyError) as error:
                raise ValueError(
                    f"{path}: {key} is of {dtype}, which cannot be read here; save it as F32 or "
                    "BF16"
                ) from error
        return tensors, file.metadata() or {}


def read_tensors(path: Path, ema: bool) -> Mapping[str, np.ndarray]:
    """All tensors of a file under their names there.

    Args:
        ema: take the averaged weights where the file keeps them beside the raw ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, might run code or holds no state dict.
    """
    if format_of(path) == "safetensors":
        return read_safetensors(path)[0]
    checkpoint = read_torch_file(path)
    try:
        return find_state_dict(checkpoint, ema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of variables from tensors that are named by their paths, parts between slashes.

    Raises:
        ValueError: a part of a name is empty, or a tensor has the name of a folder.
    """
    tree: dict[str, Any] = {}
    for key, value in tensors.items():
        *folders, leaf = key.split("/")
        if not leaf or not all(folders):
            raise ValueError(f"the tensor {key!r} has a name with an empty part")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
            if not isinstance(inner, dict):
                break
        if not isinstance(inner, dict) or leaf in inner:
            raise ValueError(f"the tensor {key!r} shares its name with another or with a folder")
        inner[leaf] = value
    return tree


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Raises ValueError, with the names, where numbers are NaN or infinite."""
    bad = [key for key, value in tensors.items() if not _is_finite(np.asarray(value))]
    if bad:
        raise ValueError(
            f"these weights hold NaN or infinite numbers: {listed(bad)}; the training that made "
            "them diverged: take an earlier checkpoint"
        )


def _is_finite(value: np.ndarray) -> bool:
    return not jnp.issubdtype(value.dtype, jnp.inexact) or bool(np.isfinite(value).all())


def listed(keys: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
