# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run, step by step: `<workdir>/metrics.jsonl`, and where asked for TensorBoard and
Weights & Biases.

A line is `{"step": 400, "train/loss": 0.61, …}`. It is strict JSON, so NaN and the infinities are
written as null.
"""

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
    checkpoint.

    Args:
        workdir: made where it is missing. One process writes; the others use `NullWriter`.
        resume_step: step of the restored checkpoint, 0 where none was.
        tensorboard: also write event files into `<workdir>/tensorboard`.
        wandb: also log to Weights & Biases. All calls with one workdir make one run there, whose id
            is in `<workdir>/wandb_id`. The variable WANDB_MODE works as it does everywhere; of
            several offline runs of one id the newest holds all steps, so sync that one.

    Raises:
        ValueError: a line of the file other than the last is no JSON.
        ModuleNotFoundError: `wandb` is asked for and not installed.
    """

    def __init__(
        self,
        workdir: Path | str,
        *,
        resume_step: int,
        tensorboard: bool,
        wandb: WandbSettings | None = None,
    ):
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / FILE_NAME
        lines = [line for line in _read(path) if line["step"] <= resume_step]
        self._wandb = None if wandb is None else _WandbRun(workdir, wandb, lines)
        _replace(path, "".join(map(_line, lines)))
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
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._file.write(_line({"step": step, **numbers}))
        self._file.flush()
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(step, numbers)


class NullWriter:
    """Takes what `MetricWriter` takes and writes nothing: for all processes but one."""

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
            _replace(id_path, f"{secrets.token_hex(8)}\n")
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
        ValueError: a line other than the last is no JSON.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"no {FILE_NAME} in {workdir}; give the working directory of a training run"
        )
    return [_null_to_nan(line) for line in _read(path)]


def _read(path: Path) -> list[dict]:
    """The complete lines; a kill or a full disk can tear the last one, which is left out."""
    if not path.exists():
        return []
    # Bytes: a torn line may end inside a character.
    texts = path.read_bytes().splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or "step" not in line:
                raise ValueError("it is no JSON object with a step")
        except ValueError as error:
            if number == len(texts):
                break
            raise ValueError(
                f"{path}, line {number}: {error}. Lines are only ever appended, so something else "
                "has changed the file: repair or delete the line, or move the file away"
            ) from error
        lines.append(line)
    return lines


def _null_to_nan(line: Mapping[str, float | int | None]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in line.items()}


def _replace(path: Path, text: str) -> None:
    # A kill between the two steps leaves the old file whole.
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _line(values: Mapping[str, float | int | None]) -> str:
    finite = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
