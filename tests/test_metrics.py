# SPDX-License-Identifier: Apache-2.0
"""Metrics: a line written survives a kill, and a resumed run reads as if it had never stopped."""

import json
import math
import signal
import struct
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mambaout_jax.train.metrics import MetricWriter, NullWriter, read_metrics


def write_steps(workdir, steps, resume_step=0, tensorboard=False):
    with MetricWriter(workdir, resume_step=resume_step, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1 / step, "train/rate": 0.5 * step})


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_write_appends_one_strict_json_line(tmp_path):
    with MetricWriter(tmp_path / "new" / "run", resume_step=0, tensorboard=False) as writer:
        writer.write(10, {"train/loss": 1.25, "train/rate": jnp.float32(0.5)})
        writer.write(10, {"eval/top1": np.float64(0.1), "eval/count": np.array(360)})
        writer.write(20, {"nan": math.nan, "inf": jnp.float32(jnp.inf), "big": 1e300})
    text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()] == [
        {"step": 10, "train/loss": 1.25, "train/rate": 0.5},
        {"step": 10, "eval/top1": 0.1, "eval/count": 360.0},
        {"step": 20, "nan": None, "inf": None, "big": 1e300},
    ]
    lines = read_metrics(tmp_path / "new" / "run")
    assert lines[0] == {"step": 10, "train/loss": 1.25, "train/rate": 0.5}
    assert math.isnan(lines[2]["nan"])
    assert math.isnan(lines[2]["inf"])
    assert lines[2]["big"] == 1e300


def test_write_loses_nothing_to_a_kill(tmp_path):
    source = """
        import os, pathlib, signal, sys
        from mambaout_jax.train.metrics import MetricWriter
        writer = MetricWriter(pathlib.Path(sys.argv[1]), resume_step=0, tensorboard=False)
        for step in range(1, 101):
            writer.write(step, {"loss": step / 8})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(source), str(tmp_path)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    expected = [{"step": step, "loss": step / 8} for step in range(1, 101)]
    assert read_metrics(tmp_path) == expected


@pytest.mark.parametrize(
    "torn", ["", '{"step": 9, "train/lo', '{"step": 9}\n{"st', "\0\0\0", "9\n"]
)
def test_resume_reads_as_if_never_interrupted(tmp_path, torn):
    write_steps(tmp_path / "whole", range(1, 13))
    write_steps(tmp_path / "resumed", range(1, 9))
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert len(read_metrics(tmp_path / "resumed")) == 8 + ("\n{" in torn)
    write_steps(tmp_path / "resumed", range(6, 13), resume_step=5)
    whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert whole.count(b"\n") == 12
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == whole
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["metrics.jsonl"]


def test_resume_keeps_a_complete_line_that_lacks_its_newline(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": null}\n{"step": 2, "a": 2.0}')
    write_steps(tmp_path, [4], resume_step=3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1, "a": null}', '{"step": 2, "a": 2.0}']
    assert json.loads(lines[2])["step"] == 4


def test_resume_of_a_damaged_file_names_the_line_and_changes_nothing(tmp_path):
    text = '{"step": 1}\n{"step": 2\n{"step": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*repair or delete the line"):
        MetricWriter(tmp_path, resume_step=3, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, [1])
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 1.0, "train/rate": 0.5}]


def test_read_metrics_of_nothing_names_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no metrics.jsonl in {tmp_path}"):
        read_metrics(tmp_path)


def read_events(path):
    """The events of a TFRecord file: length (8 bytes), its sum (4), the event, its sum (4)."""
    data, offset = path.read_bytes(), 0
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        yield Event.FromString(data[offset + 12 : offset + 12 + length])
        offset += length + 16


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path):
    write_steps(tmp_path, range(1, 9), tensorboard=True)
    write_steps(tmp_path, range(6, 13), resume_step=5, tensorboard=True)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    shown = []
    for event in (event for path in files for event in read_events(path)):
        # TensorBoard's rule: a START with a step takes back everything from that step on.
        if event.session_log.status == SessionLog.START:
            shown = [row for row in shown if row[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    assert [row for row in shown if row[1] == "train/rate"] == [
        (step, "train/rate", 0.5 * step) for step in range(1, 13)
    ]
    assert [row[2] for row in shown if row[1] == "train/loss"] == [
        np.float32(1 / step) for step in range(1, 13)
    ]


def test_tensorboard_is_written_only_where_asked_for(tmp_path):
    write_steps(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_null_writer_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NullWriter() as writer:
        writer.write(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []
