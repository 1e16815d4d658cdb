# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run, step by step: `<workdir>/metrics.jsonl`, and where asked for TensorBoard and
Weights & Biases.

A line is `{"step": 400, "train/loss": 0.61, …}`. It is strict JSON, so NaN and the infinities are
written as null.
"""

import contextlib
import dataclasses
import json
import logging
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mambaout_jax.runtime.files import write_text

_LOG = logging.getLogger("mambaout_jax")

FILE_NAME = "metrics.jsonl"
WANDB_ID_NAME = "wandb_id"

Scalar = float | int | np.generic | np.ndarray | jax.Array  # arrays are 0-d


@dataclasses.dataclass(frozen=True)
class WandbSettings:
    """What Weights & Biases shows of a run beside its metrics.

    Attributes:
        project: to which the run belongs; made where it is missing.
        config: the run's settings, nested.
    """

    project: str
    config: Mapping[str, Any]


class MetricWriter:
    """Appends to the metrics of a run. A context manager.

    A run that resumes from a checkpoint first drops the lines of later steps, so the file reads as
    if the run had never stopped. For this the metrics of a step have to be written before its
    checkpoint. A file that something else has damaged is set aside as `metrics.jsonl.damaged`, with
    a warning, and its good lines are kept.

    Args:
        workdir: made where it is missing. One process writes; the others use `NullWriter`.
        resume_step: step of the restored checkpoint, 0 where none was.
        lines: how many had been written by then; a warning tells where the file has others. None
            where this is not known.
        tensorboard: also write event files into `<workdir>/tensorboard`.
        wandb: also log to Weights & Biases. All calls with one workdir make one run there, whose id
            is in `<workdir>/wandb_id`. The variable WANDB_MODE works as it does everywhere; of
            several offline runs of one id the newest holds all steps, so sync that one.

    Attributes:
        lines: how many the file holds.

    Raises:
        ModuleNotFoundError: `wandb` is asked for and not installed.
    """

    def __init__(
        self,
        workdir: Path | str,
        *,
        resume_step: int,
        lines: int | None = None,
        tensorboard: bool,
        wandb: WandbSettings | None = None,
    ):
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = path = workdir / FILE_NAME
        found, damage = _read(path)
        kept = [line for line in found if line["step"] <= resume_step]
        self._wandb = None if wandb is None else _WandbRun(workdir, wandb, kept)
        if damage:
            _set_aside(path, damage)
        if found and resume_step == 0:
            _LOG.warning(
                "%d lines of %s are dropped: no checkpoint holds their updates", len(found), path
            )
        if lines not in (None, len(kept)):
            _LOG.warning(
                "%s has %d lines up to step %d, and %d were written: something else has changed "
                "it. The checkpoint is sound and the run goes on; only curves may have gaps",
                path, len(kept), resume_step, lines,
            )  # fmt: skip
        self.lines = len(kept)
        write_text(path, "".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import, and seldom wanted

            # purge_step hides what the stopped run wrote after the checkpoint; the suffix parts two
            # files that are opened within one second.
            self._tensorboard = SummaryWriter(
                str(workdir / "tensorboard"),
                purge_step=resume_step + 1,
                filename_suffix=f".{resume_step}",
            )

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        with contextlib.suppress(OSError):  # of a line that `write` has failed to write
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(failed=kind is not None)

    def write(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Appends one line and hands it to the operating system: killing the run cannot lose it.

        Args:
            step: updates made so far.
            values: by name, such as "train/loss". An array waits for its device.

        Raises:
            OSError: the file cannot be written to.
        """
        numbers = {name: float(value) for name, value in values.items()}
        try:
            self._file.write(_line({"step": step, **numbers}))
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.lines += 1
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(step, numbers)


class NullWriter:
    """Takes what `MetricWriter` takes and writes nothing: for all processes but one."""

    lines = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Does nothing."""


class _WandbRun:
    """A run on Weights & Biases, which takes no step twice and none out of order.

    Args:
        lines: those that the run in `workdir` has written so far.
    """

    def __init__(self, workdir: Path, settings: WandbSettings, lines: list[dict]):
        try:
            import wandb  # optional
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "log.wandb=True needs the package wandb: pip install mambaout-jax[wandb], or set "
                "--config.log.wandb=False"
            ) from error
        id_path = workdir / WANDB_ID_NAME
        if not id_path.exists():
            write_text(id_path, f"{secrets.token_hex(8)}\n")
        self._run = wandb.init(
            project=settings.project,
            id=id_path.read_text().strip(),
            resume="allow",
            name=workdir.resolve().name,
            dir=str(workdir),
            config=dict(settings.config),
            reinit="create_new",  # not a run that the calling program has open
        )
        # A kill takes away the newest step; offline, or where it was switched on late, all of them
        # are missing.
        self._first_step = self._run.step
        for line in map(_null_to_nan, lines):
            self.log(line.pop("step"), line)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        # It has the earlier ones from before the restart.
        if step >= self._first_step:
            self._run.log(dict(numbers), step=step)

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def read_metrics(workdir: Path | str) -> list[dict[str, float | int]]:
    """The lines of a run's metrics, in order; what was not finite is NaN.

    Raises:
        FileNotFoundError: the run has written none.
        ValueError: the file is damaged; names the line.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"no {FILE_NAME} in {workdir}; give the working directory of a training run"
        )
    lines, damage = _read(path)
    if damage:
        raise ValueError(
            f"{path} is damaged: {damage}. The command that trained this run sets the file aside "
            "and keeps its good lines; or delete the bad ones by hand"
        )
    return [_null_to_nan(line) for line in lines]


def _read(path: Path) -> tuple[list[dict], str]:
    """The good lines, and what is wrong with the file, "" where nothing is.

    A kill or a full disk can tear the last line, which is left out.
    """
    if not path.exists():
        return [], ""
    if not path.is_file():
        return [], "it is no file"
    texts = path.read_bytes().split(b"\n")  # bytes: a torn line may end inside a character
    last = texts.pop()
    lines, damaged = [], []
    for number, text in enumerate(texts, start=1):
        line = _parse(text)
        if line is None:
            damaged.append(number)
        else:
            lines.append(line)
    whole = _parse(last)
    if whole is not None:
        lines.append(whole)
    elif not _is_torn(last):
        damaged.append(len(texts) + 1)
    if not damaged:
        return lines, ""
    others = f", nor are {len(damaged) - 1} others" if len(damaged) > 1 else ""
    return lines, f"line {damaged[0]} is no JSON object of a step and its numbers{others}"


def _parse(text: bytes) -> dict | None:
    """A line; None where the text is none."""
    try:
        line = json.loads(text)
        step = line["step"]
        numbers = all(x is None or _is_number(x) for x in line.values())
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return line if numbers and isinstance(step, int) and step >= 0 else None


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1000  # beyond it is no float
    return isinstance(value, float)


def _is_torn(text: bytes) -> bool:
    """Whether the end of a file is the beginning of a line, or zeros that a power cut leaves."""
    begins = b'{"step": '
    return text[: len(begins)] == begins[: len(text)] or not text.strip(b"\0")


def _set_aside(path: Path, damage: str) -> None:
    number, target = 1, path.with_name(f"{FILE_NAME}.damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{FILE_NAME}.damaged_{number}")
    path.rename(target)
    _LOG.warning("%s is damaged: %s. It is moved to %s; its good lines stay", path, damage, target)


def _null_to_nan(line: Mapping[str, float | int | None]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in line.items()}


def _line(values: Mapping[str, float | int | None]) -> str:
    finite = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
