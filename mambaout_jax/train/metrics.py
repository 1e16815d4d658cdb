# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run, step by step: `<workdir>/metrics.jsonl`, and TensorBoard where asked for.

A line is `{"step": 400, "train/loss": 0.61, …}`. It is strict JSON, so NaN and the infinities are
written as null.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

FILE_NAME = "metrics.jsonl"

Scalar = float | int | np.generic | np.ndarray | jax.Array  # arrays are 0-d


class MetricWriter:
    """Appends to the metrics of a run. A context manager.

    A run that goes on from a checkpoint first drops the lines of later steps, so the file reads as
    if the run had never stopped. For this the metrics of a step have to be written before its
    checkpoint.

    Args:
        workdir: made where it is missing. One process writes; the others use `NullWriter`.
        resume_step: step of the restored checkpoint, 0 where none was.
        tensorboard: also write event files into `<workdir>/tensorboard`.

    Raises:
        ValueError: a line of the file other than the last is no JSON.
    """

    def __init__(self, workdir: Path | str, *, resume_step: int, tensorboard: bool):
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / FILE_NAME
        _rewrite(path, [line for line in _read(path) if line["step"] <= resume_step])
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

    def __exit__(self, *_):
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

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


class NullWriter:
    """Takes what `MetricWriter` takes and writes nothing: for all processes but one."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Does nothing."""


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
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in _read(path)
    ]


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


def _rewrite(path: Path, lines: list[dict]) -> None:
    # A kill between the two steps leaves the old file whole.
    temporary = path.with_name(f"{FILE_NAME}.tmp")
    temporary.write_text("".join(_line(line) for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def _line(values: Mapping[str, float | int | None]) -> str:
    finite = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
