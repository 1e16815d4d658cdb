# SPDX-License-Identifier: Apache-2.0
"""Table 1 of the paper again, into a folder: table1.csv, table1.md, table1.html, and the record.

The record, table1.json, has every measurement as soon as it is there. The same call again measures
what is missing and writes the tables anew.
"""

import difflib
import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaout_jax.benchmarks.timing import find_device
from mambaout_jax.models import list_models
from mambaout_jax.report.measured import (
    COMMAND,
    Settings,
    begin,
    checksum,
    measure,
    new_record,
    read_record,
)
from mambaout_jax.report.page import as_page
from mambaout_jax.report.printed import TABLE_1
from mambaout_jax.report.rows import read_errors, table_rows
from mambaout_jax.report.texts import as_csv, as_markdown
from mambaout_jax.runtime.files import check_destination, replacing, write_json
from mambaout_jax.runtime.lock import DirectoryLock

RECORD = "table1.json"
CSV, MARKDOWN, PAGE = "table1.csv", "table1.md", "table1.html"


def report(
    out: Path,
    *,
    errors: Path | None,
    models: Sequence[str] | None = None,
    settings: Settings | None = None,
    quick: bool = False,
    force: bool = False,
) -> list[Path]:
    """Measures speed and memory, unless `quick`, and writes the table.

    Args:
        out: folder, made where it is missing.
        errors: file of logit errors, None: none are known.
        models: names of this library or patterns of them, to be measured; None: all of the table.
        settings: of the measurements, None: the defaults.
        quick: measures nothing; what the record has stays in the table.
        force: replaces files of another origin, and measurements made with other settings.

    Returns:
        The files.

    Raises:
        FileExistsError: a file there is of another origin, or was changed since, and not `force`.
        NotADirectoryError, IsADirectoryError, PermissionError, OSError: nothing can be written
            there.
        ValueError: no such model, a damaged file of errors, or what `measured` raises.
        RuntimeError: another process writes there.
    """
    names, settings = _chosen(models), settings or Settings()
    found = read_errors(errors) if errors else []
    find_device(None if quick else settings.device)  # a mistake is told before a folder is made
    _check_folder(out)
    lock = DirectoryLock(out)
    lock.acquire()
    try:
        record = _find_record(out, force)
        if not quick:
            _begin(record, settings, force)
            measure(names, settings, record, lambda: write_json(out / RECORD, record))
        rows = table_rows(found, record["rows"])
        facts = _facts(found, record)
        texts = {CSV: as_csv(rows), MARKDOWN: as_markdown(rows, facts), PAGE: as_page(rows, facts)}
        return _write(out, record, {name: text.encode() for name, text in texts.items()})
    finally:
        lock.release()


def _chosen(patterns: Sequence[str] | None) -> list[str]:
    """Models of the table that this library has, in the table's order.

    Raises:
        ValueError: a pattern matches none of them.
    """
    there = set(list_models())
    names = [printed.name for printed in TABLE_1 if printed.name in there]
    for pattern in patterns or ():
        if not fnmatch.filter(names, pattern):
            close = difflib.get_close_matches(pattern, names, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"they are {names}"
            raise ValueError(f"no model of Table 1 that is here matches {pattern!r}; {hint}")
    return [name for name in names if any(fnmatch.fnmatch(name, one) for one in patterns or ("*",))]


def _find_record(out: Path, force: bool) -> dict[str, Any]:
    """The record of the folder, once it is sure that all files can be written.

    Raises:
        OSError: as `report`.
    """
    check_destination(out / RECORD, force=True)
    try:
        record = read_record(out / RECORD)
    except FileExistsError:
        if not force:
            raise
        record = new_record()
    for name in (CSV, MARKDOWN, PAGE):
        path = out / name
        check_destination(path, force=True)  # which leaves what is not an ordinary file
        if force or not path.exists():
            continue
        if checksum(path.read_bytes()) not in record["files"].get(name, ()):
            raise FileExistsError(
                f"{path} is not what `{COMMAND}` wrote there; name another --out, or replace it "
                "with --force"
            )
    return record


def _check_folder(out: Path) -> None:
    """Raises OSError where the folder is none, or cannot be made."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is not a folder; name another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} cannot be written: nothing can be made in {nearest}")


def _begin(record: dict[str, Any], settings: Settings, force: bool) -> None:
    """As `measured.begin`; forced, measurements that would not compare are dropped."""
    try:
        begin(record, settings)
    except ValueError:
        if not force or not record["rows"]:
            raise
        record["rows"] = {}
        begin(record, settings)


def _write(out: Path, record: dict[str, Any], files: Mapping[str, bytes]) -> list[Path]:
    """Replaces the files. A kill between any two steps leaves files that the record knows."""
    new = {name: checksum(data) for name, data in files.items()}
    old = record["files"]
    record["files"] = {name: sorted({new[name], *old.get(name, ())}) for name in files}
    write_json(out / RECORD, record)
    for name, data in files.items():
        with replacing(out / name) as part:
            part.write_bytes(data)
    record["files"] = {name: [value] for name, value in new.items()}
    write_json(out / RECORD, record)
    return [out / name for name in (*files, RECORD)]


def _facts(errors: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[str]:
    """Sentences on where the figures are from."""
    return [
        "Published: token mixers, accuracies, parameters and MACs are those that the paper prints "
        "(arXiv 2405.07992, Table 1; ImageNet-1k validation set, 224 pixels). No accuracy has been "
        "measured here.",
        "Parameters and MACs of this library are counted from shapes. A convolution and a linear "
        "layer have one multiply-accumulate per weight and output, attention two products of all "
        "pairs, a scan 9·L·D·N; norms, activations and pooling have none, while printed MACs "
        "contain norms, up to 2 % of them. A note says what else differs.",
        _about_errors(errors),
        _about_speed(record),
    ]


def _about_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    what = (
        "Logit error: the largest difference from the logits of the reference implementation, in "
        "standard deviations of these, with the same weights and images"
    )
    if not errors:
        return f"{what}. None is known here: `python tests/logit_errors.py` of a clone measures it."
    dates = sorted({row["date"] for row in errors if "date" in row})
    versions = sorted({row["jax"] for row in errors if "jax" in row})
    when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    return f"{what}, by `python tests/logit_errors.py`{when}, jax {', '.join(versions) or '?'}."


def _about_speed(record: Mapping[str, Any]) -> str:
    if not record["rows"]:
        return (
            "Images per second and memory have not been measured: the command measures them "
            "without --quick."
        )
    settings, where = record["settings"], record["environment"]
    machine = f"{where['device_count']} x {where['device']}"
    if where["platform"] == "cpu":
        machine = f"{where['cpu_count']} CPU cores ({where['machine']})"
    return (
        f"Images per second: inference on {machine}, jax {where['jax']}, batches of "
        f"{settings['batch_size']} in {settings['dtype']}, random weights, median of "
        f"{settings['rounds']} calls. Memory: temporary memory of the same program as the compiler "
        "plans it, without parameters and images."
    )
