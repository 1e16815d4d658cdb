# SPDX-License-Identifier: Apache-2.0
"""Table 1 as CSV, for programs, and as Markdown, for people."""

import csv
import io
from collections.abc import Callable, Sequence

from mambaout_jax.report.rows import Row

NOT_HERE, NOT_MEASURED = "not in this library", "not measured"


def as_csv(rows: Sequence[Row]) -> str:
    """One line per row. What is not known is a text that says why; the rest of a column, numbers.

    Parameters and MACs of the paper are in millions and 10⁹, as printed; ours are exact.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    writer.writerows([str(cell(row)) for cell in _CSV.values()] for row in rows)
    return stream.getvalue()


def as_markdown(rows: Sequence[Row], facts: Sequence[str]) -> str:
    """The table, and below it what its figures mean.

    Args:
        facts: sentences on where the figures are from.
    """
    table = [list(_MARKDOWN), *([cell(row) for cell in _MARKDOWN.values()] for row in rows)]
    table = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in table]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    return (
        "\n".join(
            [
                "# Table 1 of the MambaOut paper, again",
                "",
                *lines,
                "",
                *(f"- {fact}" for fact in facts),
            ]
        )
        + "\n"
    )


def pixels(row: Row) -> str:
    """The side of the images."""
    return str(row.ours.image_size) if row.ours else NOT_HERE


def parameters(row: Row) -> str:
    """Ours, in millions."""
    return f"{row.ours.parameters / 1e6:.2f}" if row.ours else NOT_HERE


def macs(row: Row) -> str:
    """Ours, in 10⁹."""
    return f"{row.ours.macs / 1e9:.2f}" if row.ours else NOT_HERE


def error(row: Row) -> str:
    """The largest of the logits, in standard deviations."""
    return f"{row.error.largest:.1e}" if row.error else missing(row)


def speed(row: Row) -> str:
    """Images per second, with three digits."""
    return _three_digits(row.speed["median"]) if row.speed else missing(row)


def memory(row: Row) -> str:
    """Temporary memory in MiB, with three digits."""
    return missing(row) if row.memory is None else _three_digits(row.memory / 2**20)


def missing(row: Row) -> str:
    """Why a measured figure is not there."""
    return NOT_MEASURED if row.ours else NOT_HERE


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _of_ours(field: str) -> Callable[[Row], object]:
    """An attribute of `Row.ours` as it is; where it is None, nothing."""

    def cell(row: Row) -> object:
        if row.ours is None:
            return NOT_HERE
        value = getattr(row.ours, field)
        return "" if value is None else value

    return cell


def _of_speed(key: str) -> Callable[[Row], object]:
    return lambda row: row.speed[key] if row.speed else missing(row)


_CSV: dict[str, Callable[[Row], object]] = {
    "model": lambda row: row.printed.model,
    "token_mixer": lambda row: row.printed.token_mixer,
    "library_model": lambda row: row.printed.name if row.ours else NOT_HERE,
    "image_size": _of_ours("image_size"),
    "published_top1_percent": lambda row: row.printed.top1,
    "published_parameters_millions": lambda row: row.printed.parameters,
    "published_macs_billions": lambda row: row.printed.macs,
    "parameters": _of_ours("parameters"),
    "macs": _of_ours("macs"),
    "macs_by_hand_formula": _of_ours("hand_macs"),
    "logit_error": lambda row: f"{row.error.largest:.3g}" if row.error else missing(row),
    "logit_error_dtype": lambda row: row.error.dtype if row.error else missing(row),
    "logit_error_references": lambda row: row.error.references if row.error else missing(row),
    "images_per_second": _of_speed("median"),
    "images_per_second_min": _of_speed("min"),
    "images_per_second_max": _of_speed("max"),
    "temporary_memory_bytes": lambda row: missing(row) if row.memory is None else row.memory,
    "note": lambda row: row.note,
}

_MARKDOWN: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.printed.model,
    "token mixer": lambda row: row.printed.token_mixer,
    "pixels": pixels,
    "top-1 % (published)": lambda row: row.printed.top1,
    "params M (published)": lambda row: row.printed.parameters,
    "MACs G (published)": lambda row: row.printed.macs,
    "params M": parameters,
    "MACs G": macs,
    "logit error": error,
    "images/s": speed,
    "memory MiB": memory,
    "note": lambda row: row.note,
}
