# SPDX-License-Identifier: Apache-2.0
"""The tensors of a source of weights, under their names there, and what their names and sizes tell.

What models make of them is in `weights.load` and, for detectors and segmenters, `weights.dense`.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mambaout_jax.backbone import Positioned
from mambaout_jax.models import create_backbone
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.weights.convert import POSITIONS, torch_shape
from mambaout_jax.weights.files import check_finite, read_tensors

_LOG = logging.getLogger("mambaout_jax")

Tensors = Mapping[str, np.ndarray]


def tensors_of(source: str | Path, path: Path, ema: bool) -> Tensors:
    """All tensors of a file, or of a run's newest checkpoint, under their names there.

    Args:
        source: what messages call it.
        path: the file, or the directory of a run.
        ema: take the averaged weights where there are some beside the raw ones.

    Raises:
        ValueError: as `read_tensors`, or a number is NaN or infinite.
        RuntimeError: no checkpoint of the run can be read.
    """
    if path.is_dir():
        state = read_checkpoint(path / "checkpoints").state
        averaged = state.get("ema") if ema else None
        variables = averaged or {"params": state["params"], **state.get("collections", {})}
        tensors: Any = flatten_dict(variables, sep="/")
    else:
        tensors = read_tensors(path, ema)
    try:
        check_finite(tensors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return tensors


def named_in_torch(tensors: Tensors) -> bool:
    """PyTorch's names have no slash."""
    return not any("/" in key for key in tensors)


def trained_image_size(
    name: str, tensors: Tensors, options: Mapping[str, Any]
) -> int | tuple[int, int] | None:
    """Image size that a position table was made for, None where there is no table.

    Its length does not tell the grid: a square one where that can be, else the one asked for.
    """
    if named_in_torch(tensors):
        shape = torch_shape(name, tensors, POSITIONS)
    else:
        shape = np.shape(tensors[own]) if (own := "/".join(POSITIONS)) in tensors else ()
    if not shape:
        return None
    backbone = create_backbone(name, **options)
    patches = shape[-2] - (backbone.class_token is not None)
    side = math.isqrt(patches)
    if side**2 != patches:
        return options.get("image_size")
    return side * backbone.position_stride


def fit_positions(
    source: str | Path, backbone: Positioned, table: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """`Positioned.resize_positions`, which says that it does."""
    if grid != backbone.grid:
        sizes = (*grid, *backbone.grid)
        _LOG.info("%s: positions interpolated from %d x %d to %d x %d patches", source, *sizes)
    return np.asarray(backbone.resize_positions(table, grid, backbone.grid))
