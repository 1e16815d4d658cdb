# SPDX-License-Identifier: Apache-2.0
"""Table 1 as a page: one file that needs no network and no library.

Python writes the table. The page's own script sorts and filters it, and draws its charts from what
stands in the cells, so that without a script everything but the charts is there.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from mambaout_jax.report import texts
from mambaout_jax.report.measured import COMMAND
from mambaout_jax.report.printed import MIXERS
from mambaout_jax.report.rows import Row

_PARTS = Path(__file__).parent  # of page.html, page.css, page.js
_EMPHASISED = "mambaout"  # the family that the library is about


class _Column(NamedTuple):
    """A column of figures.

    Attributes:
        key: by which the script knows it.
        title: its head.
        unit: below the title.
    """

    key: str
    title: str
    unit: str


class _Cell(NamedTuple):
    """A figure.

    Attributes:
        text: what is read.
        value: by which it is sorted and drawn, None where it is not known.
        title: more, in a tooltip.
    """

    text: str
    value: float | None
    title: str = ""


_PUBLISHED = "Published"
_GROUPS = {
    _PUBLISHED: (
        _Column("top1", "Top-1", "%"),
        _Column("printed_parameters", "Params", "M"),
        _Column("printed_macs", "MACs", "G"),
    ),
    "Counted here": (
        _Column("pixels", "Image", "pixels"),
        _Column("parameters", "Params", "M"),
        _Column("macs", "MACs", "G"),
    ),
    "Measured here": (
        _Column("error", "Logit error", "σ"),
        _Column("speed", "Speed", "images/s"),
        _Column("memory", "Memory", "MiB"),
    ),
}


def as_page(rows: Sequence[Row], facts: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        rows: in the order that the page begins with.
        facts: sentences on where the figures are from.
    """
    page = (_PARTS / "page.html").read_text(encoding="utf-8")
    parts = {
        "command": escape(COMMAND),
        "style": (_PARTS / "page.css").read_text(encoding="utf-8"),
        "script": (_PARTS / "page.js").read_text(encoding="utf-8"),
        "count": str(len(rows)),
        "summary": escape(_summary(rows)),
        "filters": "\n".join(_filter(number, mixer) for number, mixer in enumerate(MIXERS)),
        "head": _head(),
        "rows": "\n".join(_row(number, row) for number, row in enumerate(rows, start=1)),
        "facts": "\n".join(f"<li>{escape(fact)}</li>" for fact in facts),
    }
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    return page


def _summary(rows: Sequence[Row]) -> str:
    here = sum(row.ours is not None for row in rows)
    compared = sum(row.error is not None for row in rows)
    measured = sum(row.speed is not None for row in rows)
    return (
        f"{here} of {len(rows)} models are in this library. The logits of {compared} are compared "
        f"with those of their references, and the speed of {measured or 'none'} is measured."
    )


def _filter(number: int, mixer: str) -> str:
    return (
        f'<label><input type="checkbox" name="mixer" value="{escape(mixer)}" checked>'
        f"{_swatch(number)}{escape(mixer)}</label>"
    )


def _head() -> str:
    groups = '<td colspan="3"></td>' + "".join(
        f'<th scope="colgroup" colspan="{len(columns)}" class="first">{group}</th>'
        for group, columns in _GROUPS.items()
    )
    single = (("order", "#", "", "number"), ("model", "Model", "", "text"),
              ("mixer", "Token mixer", "", "text"))  # fmt: skip
    heads = [_head_cell(*column) for column in single]
    for columns in _GROUPS.values():
        for i, column in enumerate(columns):
            heads.append(_head_cell(*column, "number first" if i == 0 else "number"))
    return (
        f'<tr class="groups">{groups}<td class="first"></td></tr>\n'
        f'<tr>{"".join(heads)}<th scope="col" class="first note">Note</th></tr>'
    )


def _head_cell(key: str, title: str, unit: str, kind: str) -> str:
    """The head of a column, a button that sorts by it. The page begins in the paper's order."""
    order = "ascending" if key == "order" else "none"
    small = f"<small>{escape(unit)}</small>" if unit else ""
    return (
        f'<th scope="col" class="{kind} {key}" data-key="{key}" aria-sort="{order}">'
        f'<button type="button">{escape(title)}{small}</button></th>'
    )


def _row(number: int, row: Row) -> str:
    printed, mixer = row.printed, MIXERS.index(row.printed.token_mixer)
    name = printed.name if row.ours else texts.NOT_HERE
    emphasis = ' class="emphasised"' if row.ours and row.ours.family == _EMPHASISED else ""
    cells = [
        f'<td class="number order" data-value="{number}">{number}</td>',
        f'<th scope="row" class="model" title="{escape(name)}">{escape(printed.model)}</th>',
        f'<td class="mixer">{_swatch(mixer)}{escape(printed.token_mixer)}</td>',
    ]
    for group, columns in _GROUPS.items():
        for i, column in enumerate(columns if row.ours or group == _PUBLISHED else ()):
            cells.append(_figure(_CELLS[column.key](row), column.key, first=i == 0))
    if row.ours is None:
        span = sum(len(columns) for columns in _GROUPS.values()) - len(_GROUPS[_PUBLISHED])
        cells.append(f'<td class="missing first" colspan="{span}">{texts.NOT_HERE}</td>')
    cells.append(f'<td class="first note">{escape(row.note)}</td>')
    return f'<tr{emphasis} data-mixer="{mixer}">{"".join(cells)}</tr>'


def _swatch(mixer: int) -> str:
    """Where the script draws the mark of a token mixer."""
    return f'<svg class="swatch mixer-{mixer}" width="14" height="14" aria-hidden="true"></svg>'


def _figure(cell: _Cell, key: str, first: bool) -> str:
    kind = "missing" if cell.value is None else "number"
    value = "" if cell.value is None else f' data-value="{cell.value:.10g}"'
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    first_of_group = " first" if first else ""
    return (
        f'<td class="{kind}{first_of_group}" data-key="{key}"{value}{title}>'
        f"{escape(cell.text)}</td>"
    )


def _printed(text: str) -> _Cell:
    return _Cell(text, None if text == "-" else float(text))


def _pixels(row: Row) -> _Cell:
    return _Cell(texts.pixels(row), row.ours.image_size if row.ours else None)


def _parameters(row: Row) -> _Cell:
    count = row.ours.parameters if row.ours else 0
    return _Cell(texts.parameters(row), count / 1e6, f"{count:,} parameters")


def _macs(row: Row) -> _Cell:
    count = row.ours.macs if row.ours else 0
    return _Cell(texts.macs(row), count / 1e9, f"{count:,} multiply-accumulates")


def _error(row: Row) -> _Cell:
    if row.error is None:
        return _Cell(texts.error(row), None)
    count = row.error.references
    where = f"{count} references" if count > 1 else "1 reference"
    return _Cell(texts.error(row), row.error.largest, f"{where}, in {row.error.dtype}")


def _speed(row: Row) -> _Cell:
    if row.speed is None:
        return _Cell(texts.speed(row), None)
    spread = "{min:.4g} to {max:.4g} images/s".format(**row.speed)
    return _Cell(texts.speed(row), row.speed["median"], spread)


def _memory(row: Row) -> _Cell:
    return _Cell(texts.memory(row), None if row.memory is None else row.memory / 2**20)


# By the key of a column. Those that are counted are asked of rows of this library only.
_CELLS = {
    "top1": lambda row: _printed(row.printed.top1),
    "printed_parameters": lambda row: _printed(row.printed.parameters),
    "printed_macs": lambda row: _printed(row.printed.macs),
    "pixels": _pixels,
    "parameters": _parameters,
    "macs": _macs,
    "error": _error,
    "speed": _speed,
    "memory": _memory,
}
