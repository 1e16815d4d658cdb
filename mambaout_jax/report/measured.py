# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of models, measured one by one and kept in a record.

The record is a JSON file. It holds what all measurements have in common, a row per model that has
been measured, and checksums of the files that the report has written: a run that is stopped goes on
where it was, and files of another origin are told from its own.
"""

import datetime
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambaout_jax.analysis.cost import count
from mambaout_jax.benchmarks import throughput
from mambaout_jax.benchmarks.jax_models import OURS
from mambaout_jax.benchmarks.timing import environment, find_device
from mambaout_jax.models import create_model, find_variant
from mambaout_jax.report.rows import COUNTED_AT
from mambaout_jax.runtime.files import read_json
from mambaout_jax.runtime.streams import complain

COMMAND = "mambaout report table1"


class Settings(NamedTuple):
    """What the measurements of a table have in common.

    Attributes:
        batch_size: images per call.
        dtype: precision of the computation; parameters are float32.
        rounds: calls that are timed of each model; the speed is the median over them.
        device: "cpu", "gpu" or "tpu", None: JAX's default.
    """

    batch_size: int = 8
    dtype: str = "float32"
    rounds: int = 5
    device: str | None = None


def new_record() -> dict[str, Any]:
    """The record of a report that has measured nothing."""
    return {"command": COMMAND, "settings": {}, "environment": {}, "rows": {}, "files": {}}


def read_record(path: Path) -> dict[str, Any]:
    """The record that a file holds, a new one where there is no file.

    Raises:
        FileExistsError: the file holds something else.
    """
    if not path.exists():
        return new_record()
    try:
        record = read_json(path)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("command") != COMMAND:
        raise FileExistsError(
            f"{path} is no record of `{COMMAND}`; name another --out, or replace it with --force"
        )
    return record


def checksum(data: bytes) -> str:
    """That of a file's contents, as the record has it."""
    return hashlib.sha256(data).hexdigest()


def begin(record: dict[str, Any], settings: Settings) -> None:
    """Notes the settings and the machine in a record without rows, and compares them with rows.

    Raises:
        ValueError: its rows were measured with other settings or elsewhere, or the device is not
            there.
    """
    now = {
        "settings": settings._asdict(),
        "environment": environment(find_device(settings.device)),
    }
    if record["rows"]:
        changed = [
            f"{name} was {record[part].get(name)!r} and is {value!r} now"
            for part, values in now.items()
            for name, value in values.items()
            if record[part].get(name) != value
        ]
        if changed:
            raise ValueError(
                f"the speeds measured before and now would not compare: {'; '.join(changed)}. "
                "Set it back, name another --out, or measure all of them anew with --force"
            )
    record |= now


def measure(
    names: Sequence[str], settings: Settings, record: dict[str, Any], keep: Callable[[], object]
) -> None:
    """Measures the models that the record does not have yet, inference at their own image sizes.

    Args:
        names: models of the library.
        settings: those of the record.
        record: gets a row for each: `image_size`, `images_per_second` (median, min, max),
            `temp_bytes` (temporary memory as planned by the compiler, None where it does not tell),
            `compile_seconds` and `date`.
        keep: called after each.

    Raises:
        ValueError: the parameters or MACs of a model, counted anew, are not those of its table.
    """
    for number, name in enumerate(names, start=1):
        if name in record["rows"]:
            continue
        complain(f"model {number} of {len(names)}")
        check_cost(name)
        size = find_variant(name)[1].image_size
        result = throughput.run(
            models=(name,),
            batch_size=settings.batch_size,
            image_size=size,
            dtype=settings.dtype,
            rounds=settings.rounds,
            passes=("inference",),
            timm=False,
            device=settings.device,
        )
        (row,) = result["rows"]
        record["rows"][name] = {
            "image_size": size,
            "images_per_second": row["images_per_second"][OURS],
            "temp_bytes": row["temp_bytes"].get(OURS),
            "compile_seconds": row["compile_seconds"][OURS],
            "date": datetime.date.today().isoformat(),
        }
        keep()


def check_cost(name: str) -> None:
    """Counts the parameters and MACs of a model, from shapes alone.

    Raises:
        ValueError: they are not those of its family's table.
    """
    variant = find_variant(name)[1]
    cost = count(create_model(name), (COUNTED_AT, COUNTED_AT, 3))
    if cost != (variant.parameters, variant.macs):
        raise ValueError(
            f"{name} has {cost.parameters:,} parameters and {cost.macs:,} MACs, and its family's "
            f"table says {variant.parameters:,} and {variant.macs:,}: correct the table"
        )
