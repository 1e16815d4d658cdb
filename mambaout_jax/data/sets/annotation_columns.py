# SPDX-License-Identifier: Apache-2.0
"""`Annotations` as files, one for each column: opened in no time, and shared by all processes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mambaout_jax.data.sets.annotations import Annotations
from mambaout_jax.data.sets.segments import Segments

_NAMES = "names.json"  # what is not numbers
_MASKS = {field.name: f"mask_{field.name}" for field in dataclasses.fields(Segments)}
_WORDS = ("file", "class_names", "category_ids")
_COLUMNS = tuple(
    field.name for field in dataclasses.fields(Annotations) if field.name not in (*_WORDS, "masks")
)


def save_columns(annotations: Annotations, folder: Path) -> None:
    """Writes the columns into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COLUMNS:
        np.save(folder / f"{name}.npy", getattr(annotations, name))
    for name, stem in _MASKS.items():
        np.save(folder / f"{stem}.npy", getattr(annotations.masks, name))
    names = {name: getattr(annotations, name) for name in _WORDS}
    (folder / _NAMES).write_text(json.dumps(names), encoding="utf-8")


def load_columns(folder: Path) -> Annotations:
    """Maps the columns of a folder into memory: they are read where and when they are needed.

    Raises:
        FileNotFoundError: columns are missing.
        ValueError: they are damaged.
    """
    try:
        names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
        columns: dict[str, Any] = {name: _mapped(folder / f"{name}.npy") for name in _COLUMNS}
        masks = Segments(**{name: _mapped(folder / f"{stem}.npy") for name, stem in _MASKS.items()})
        return Annotations(
            file=names["file"],
            class_names=tuple(names["class_names"]),
            category_ids=tuple(names["category_ids"]),
            masks=masks,
            **columns,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} is missing; copy the prepared set again, or prepare it again"
        ) from error
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise ValueError(
            f"the annotations in {folder} are damaged ({error}); copy the prepared set again, or "
            "prepare it again"
        ) from error


def _mapped(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)
