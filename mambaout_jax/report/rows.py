# SPDX-License-Identifier: Apache-2.0
"""Rows of Table 1: what the paper prints, what is counted here, and what was measured here."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambaout_jax.analysis.cost import count
from mambaout_jax.models import create_model, find_variant, list_models
from mambaout_jax.report.printed import PARAMETERS, TABLE_1, WHICH, Printed
from mambaout_jax.runtime.files import read_json

# Written by tests/logit_errors.py; a clone has it.
ERRORS = Path(__file__).parents[2] / "experiments" / "results" / "logit_errors.json"

COUNTED_AT = 224  # pixels, of the multiply-accumulates in a family's table of sizes
_NORMS = 0.02  # of printed MACs, which count what norms do; ours do not
_BY_HAND = "MACs are printed by LocalMamba's formula of the scan, which gives {:.2f} G"
_PARAMETERS = "its reference has {:.2f} M parameters as well"
_MACS = "{:.2f} G MACs {} than are printed"


class Ours(NamedTuple):
    """What this library has of a row.

    Attributes:
        family: name of the model's family.
        image_size: side in pixels that the model was published at, and MACs are counted at.
        parameters: number of them.
        macs: multiply-accumulates of an image, as `analysis.cost` counts them.
        hand_macs: likewise by its formula "hand", None where nothing is printed by it.
    """

    family: str
    image_size: int
    parameters: int
    macs: int
    hand_macs: int | None


class Error(NamedTuple):
    """How far logits are from those of the references.

    Attributes:
        largest: in standard deviations of the reference's logits.
        dtype: that it was measured in.
        references: how many there are.
    """

    largest: float
    dtype: str
    references: int


class Row(NamedTuple):
    """Attributes:
    printed: what the paper has.
    ours: None where the model is not in this library.
    note: what differs, and why; "" where nothing does.
    error: None where it is not measured.
    speed: images per second (median, min, max), None where it is not measured.
    memory: bytes of temporary memory of the compiled program, None where it is not measured.
    """

    printed: Printed
    ours: Ours | None
    note: str
    error: Error | None
    speed: Mapping[str, float] | None
    memory: int | None


def table_rows(
    errors: Sequence[Mapping[str, Any]] = (),
    measured: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """The 80 rows in the paper's order. Nothing is computed but a few counts, from shapes alone.

    Args:
        errors: the rows of a file such as `ERRORS`.
        measured: the rows of a record of `report.measured`.
    """
    rows = []
    for printed in TABLE_1:
        ours = find_ours(printed.name)
        found = (measured or {}).get(printed.name, {}) if ours else {}
        rows.append(
            Row(
                printed,
                ours,
                _note(printed, ours) if ours else "",
                _error([row for row in errors if row["model"] == printed.name]) if ours else None,
                found.get("images_per_second"),
                found.get("temp_bytes"),
            )
        )
    return rows


def read_errors(path: Path) -> list[dict[str, Any]]:
    """The rows of a file such as `ERRORS`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or something else.
    """
    found = read_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(map(_is_error, rows)):
        raise ValueError(
            f"{path} is no file of logit errors; `python tests/logit_errors.py` of a clone writes "
            "one"
        )
    return rows


def _is_error(row: Any) -> bool:
    wanted = {"model": str, "error": float, "dtype": str}
    return isinstance(row, dict) and all(
        isinstance(row.get(key), kind) for key, kind in wanted.items()
    )


def find_ours(name: str) -> Ours | None:
    """What this library has of a model, None where it has no such model."""
    if name not in list_models():
        return None
    family, variant = find_variant(name)
    side = variant.image_size
    return Ours(
        family.__name__.rpartition(".")[2],
        side,
        variant.parameters,
        variant.macs if side == COUNTED_AT else _macs_at(name, side),
        variant.hand_macs or None,
    )


@functools.cache
def _macs_at(name: str, side: int) -> int:
    return count(create_model(name), (side, side, 3)).macs


def _note(printed: Printed, ours: Ours) -> str:
    """Which model it is, and why its figures are not those that are printed, where they are not."""
    notes = [WHICH.get(printed.model)]
    millions, billions = ours.parameters / 1e6, ours.macs / 1e9
    if abs(millions - float(printed.parameters)) > _rounding(printed.parameters):
        notes.append(PARAMETERS.get(printed.model, _PARAMETERS.format(millions)))
    if ours.hand_macs:
        notes.append(_BY_HAND.format(ours.hand_macs / 1e9))
    elif printed.macs != "-":
        over, rounding = billions - float(printed.macs), _rounding(printed.macs)
        if not -rounding - _NORMS * float(printed.macs) <= over <= rounding:
            notes.append(_MACS.format(abs(over), "more" if over > 0 else "fewer"))
    return "; ".join(note for note in notes if note)


def _rounding(text: str) -> float:
    """Half of the last digit that is printed."""
    return 0.5 * 10 ** -len(text.partition(".")[2])


def _error(rows: Sequence[Mapping[str, Any]]) -> Error | None:
    if not rows:
        return None
    worst = max(rows, key=lambda row: row["error"])
    return Error(worst["error"], worst["dtype"], len(rows))
