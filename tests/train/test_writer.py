# SPDX-License-Identifier: Apache-2.0
"""Metrics: a line written survives a kill, and a resumed run reads as if it had never stopped."""

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mambaout_jax.train.writer import MetricWriter, NullWriter, WandbSettings, read_metrics


def write_steps(workdir, steps, resume_step=0, tensorboard=False):
    options = {"resume_step": resume_step, "lines": resume_step, "tensorboard": tensorboard}
    with MetricWriter(workdir, **options) as writer:
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
        from mambaout_jax.train.writer import MetricWriter
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
    "torn", ["", '{"step": 9, "train/lo', '{"step": 9}\n{"st', "\0\0\0", '{"step": 9, "a\0\0']
)
def test_resume_reads_as_if_never_interrupted(tmp_path, torn, caplog):
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
    assert caplog.messages == []


def test_resume_keeps_a_complete_line_that_lacks_its_newline(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": null}\n{"step": 2, "a": 2.0}')
    write_steps(tmp_path, [4], resume_step=3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1, "a": null}', '{"step": 2, "a": 2.0}']
    assert json.loads(lines[2])["step"] == 4


GOOD = b'{"step": 1, "a": 1.0}\n{"step": 2, "a": null}\n{"step": 4, "a": 4.0}\n'
ONE, OTHER = b'{"step": 1, "a": 1.0}\n', b'{"step": 2, "a": null}\n'


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (ONE + b'{"step": 2, "a\n' + OTHER, "line 2 is no"),
        (ONE + b'{"step": "2", "a": 1}\n' + OTHER, "line 2 is no"),
        (ONE + b'{"step": 2, "a": "high"}\n' + OTHER, "line 2 is no"),
        (ONE + b'{"step": 2, "a": {}}\n' + OTHER, "line 2 is no"),
        (ONE + b'{"step": true}\n{"step": 1.5}\n{"step": -1}\n' + OTHER, "line 2 .*are 2 others"),
        (ONE + b'{"a": 1}\n' + OTHER, "line 2 is no"),
        (ONE + b"[1]\n7\nnull\n\n" + OTHER, "line 2 .* numbers, nor are 3 others"),
        (ONE + b"\xff\xfe\n" + OTHER, "line 2 is no"),
        (ONE + b'{"step": 2, "a": 1' + b"0" * 400 + b"}\n" + OTHER, "line 2 is no"),
        (ONE + b"[" * 100_000 + b"\n" + OTHER, "line 2 is no"),
        (ONE + OTHER + b"garbage\n", "line 3 is no"),
        (ONE + OTHER + b"garbage", "line 3 is no"),
        (ONE + OTHER + b'{"step": 9, "a": \n', "line 3 is no"),
    ],
)
def test_resume_sets_a_damaged_file_aside_and_keeps_its_good_lines(
    tmp_path, content, damage, caplog
):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl is damaged: {damage}"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl.damaged").write_text("of another time")
    with MetricWriter(tmp_path, resume_step=3, lines=2, tensorboard=False) as writer:
        writer.write(4, {"a": 4})
    assert writer.lines == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == GOOD
    assert (tmp_path / "metrics.jsonl.damaged_2").read_bytes() == content
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == "of another time"
    (message,) = caplog.messages
    assert re.search(rf"jsonl is damaged: {damage}.* moved to .*damaged_2; its good", message)


def test_a_folder_in_place_of_the_file_is_set_aside(tmp_path, caplog):
    (tmp_path / "metrics.jsonl" / "a").mkdir(parents=True)
    write_steps(tmp_path, [1])
    assert (tmp_path / "metrics.jsonl.damaged" / "a").is_dir()
    assert "metrics.jsonl is damaged: it is no file. It is moved to" in caplog.text


@pytest.mark.parametrize(
    ("content", "count"),
    [(None, 0), (b"", 0), (ONE, 1), (ONE + OTHER + ONE, 3), (ONE + b'{"step": 2, "a', 1)],
)
def test_lines_that_are_not_those_written_are_told(tmp_path, content, count, caplog):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    with MetricWriter(tmp_path, resume_step=2, lines=2, tensorboard=False) as writer:
        writer.write(4, {"a": 4})
    assert writer.lines == count + 1  # so that a later start does not tell of it again
    assert caplog.messages == [
        f"{tmp_path / 'metrics.jsonl'} has {count} lines up to step 2, and 2 were written: "
        "something else has changed it. The checkpoint is sound and the run goes on; only curves "
        "may have gaps"
    ]
    assert len(read_metrics(tmp_path)) == count + 1


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with MetricWriter(tmp_path, resume_step=0, tensorboard=False) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(OSError, match=r"No space left on device: .*/metrics\.jsonl"):
            writer.write(1, {"a": 1})
        assert writer.lines == 0


def test_a_fresh_run_starts_an_empty_file(tmp_path, caplog):
    write_steps(tmp_path, range(1, 4))
    assert caplog.messages == []
    write_steps(tmp_path, [1])
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 1.0, "train/rate": 0.5}]
    assert caplog.messages == [
        f"3 lines of {tmp_path / 'metrics.jsonl'} are dropped: no checkpoint holds their updates"
    ]


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


class WandbServer:
    """Stands in for the module `wandb` and its server: what each run has been sent.

    As there, the values of one step become one row, which is sent when a later step begins or the
    run finishes.
    """

    def __init__(self):
        self.rows = {}  # id → step → values
        self.pending = {}  # step → values, of the newest run
        self.init_calls, self.exit_codes = [], []

    def init(self, **arguments):
        self.init_calls.append(arguments)
        rows = self.rows.setdefault(arguments["id"], {})
        first, self.pending = max(rows, default=-1) + 1, {}
        pending = self.pending

        def log(values, step):
            assert step >= max([first, *pending]), "the server would ignore this step"
            if step not in pending:
                rows.update(pending)
                pending.clear()
            pending.setdefault(step, {}).update(values)

        def finish(exit_code):
            rows.update(pending)
            self.exit_codes.append(exit_code)

        return types.SimpleNamespace(step=first, log=log, finish=finish)


@pytest.fixture
def wandb_server(monkeypatch):
    server = WandbServer()
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=server.init))
    return server


def open_wandb(workdir, resume_step=0):
    settings = WandbSettings("a project", {"seed": 3, "model": {"name": "small"}})
    return MetricWriter(workdir, resume_step=resume_step, tensorboard=False, wandb=settings)


def write_pairs(writer, steps):
    for step in steps:
        writer.write(step, {"train/loss": np.float32(1 / 8) * step})
        writer.write(step, {"eval/top1": jnp.float32(0.5) * step})


def pairs(steps):
    return {step: {"train/loss": step / 8, "eval/top1": step / 2} for step in steps}


def test_wandb_gets_settings_and_every_value_at_its_step(tmp_path, wandb_server):
    with open_wandb(tmp_path / "run") as writer:
        write_pairs(writer, range(1, 5))
        writer.write(6, {"train/loss": math.nan})
    identity = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert len(identity) == 16
    assert wandb_server.init_calls == [
        {
            "project": "a project",
            "id": identity,
            "resume": "allow",
            "name": "run",
            "dir": str(tmp_path / "run"),
            "config": {"seed": 3, "model": {"name": "small"}},
            "reinit": "create_new",
        }
    ]
    rows = wandb_server.rows[identity]
    assert math.isnan(rows.pop(6)["train/loss"])
    assert rows == pairs(range(1, 5))
    assert wandb_server.exit_codes == [0]


def test_wandb_goes_on_with_the_same_run_and_has_each_step_once(tmp_path, wandb_server):
    with open_wandb(tmp_path) as killed:
        write_pairs(killed, range(1, 9))
        wandb_server.pending.clear()  # a kill: row 8 is never sent
    with open_wandb(tmp_path, resume_step=5) as resumed:
        write_pairs(resumed, range(6, 13))
    first, second = (call["id"] for call in wandb_server.init_calls)
    assert first == second
    assert wandb_server.rows == {first: pairs(range(1, 13))}


def test_wandb_gets_the_row_of_the_checkpoint_that_a_kill_took(tmp_path, wandb_server):
    with open_wandb(tmp_path) as killed:
        write_pairs(killed, range(1, 9))
        wandb_server.pending.clear()
    with open_wandb(tmp_path, resume_step=8) as resumed:
        write_pairs(resumed, [9])
    assert list(wandb_server.rows.values()) == [pairs(range(1, 10))]


def test_wandb_switched_on_late_gets_the_earlier_steps(tmp_path, wandb_server):
    with MetricWriter(tmp_path, resume_step=0, tensorboard=False) as writer:
        write_pairs(writer, range(1, 5))
    with open_wandb(tmp_path, resume_step=3) as writer:
        write_pairs(writer, range(4, 7))
    assert list(wandb_server.rows.values()) == [pairs(range(1, 7))]


def test_wandb_runs_of_two_workdirs_differ(tmp_path, wandb_server):
    for name in ("a", "b"):
        with open_wandb(tmp_path / name) as writer:
            write_pairs(writer, [1])
    assert [call["name"] for call in wandb_server.init_calls] == ["a", "b"]
    assert len(wandb_server.rows) == 2


def test_wandb_run_that_raises_is_marked_as_failed(tmp_path, wandb_server):
    def run():
        with open_wandb(tmp_path) as writer:
            write_pairs(writer, [1])
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        run()
    assert wandb_server.exit_codes == [1]
    assert list(wandb_server.rows.values()) == [pairs([1])]


def test_wandb_that_is_not_installed_names_the_extra_and_changes_nothing(tmp_path, monkeypatch):
    write_steps(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install mambaout-jax\[wandb\]"):
        open_wandb(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def read_wandb_records(path):
    """The records of an offline run: LevelDB's log format after a header of seven bytes.

    Blocks of 32 KiB hold pieces: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3:
    middle, 4: last), data.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, record = path.read_bytes(), 7, b""
    while offset < len(data):
        if 32768 - offset % 32768 < 7:  # too little for a header: zeros up to the next block
            offset += 32768 - offset % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_itself_records_a_resumed_run_offline(tmp_path):
    source = """
        import sys
        from mambaout_jax.train.writer import MetricWriter, WandbSettings
        settings = WandbSettings("a project", {"seed": 3, "data": {"mean": (0.5,), "path": None}})
        for first, last in ((1, 8), (6, 12)):
            with MetricWriter(
                sys.argv[1], resume_step=first - 1, tensorboard=False, wandb=settings
            ) as writer:
                for step in range(first, last + 1):
                    writer.write(step, {"train/loss": step / 8})
                    writer.write(step, {"eval/top1": step / 2})
    """
    workdir = tmp_path / "run"
    names = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        **dict.fromkeys(names, str(tmp_path)),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source), str(workdir)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    files = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    histories = []
    for path in files:
        records = list(read_wandb_records(path))
        (run,) = (record.run for record in records if record.HasField("run"))
        assert run.run_id == (workdir / "wandb_id").read_text().strip()
        assert (run.project, run.display_name) == ("a project", "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["seed"] == 3
        assert config["data"] == {"mean": [0.5], "path": None}
        histories.append([record.history for record in records if record.HasField("history")])
    shown = []
    for history in histories:
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item}
            for row in history
        ]
        shown.append({row["_step"]: (row["train/loss"], row["eval/top1"]) for row in rows})
        assert len(rows) == len(shown[-1])
    assert shown == [
        {step: (step / 8, step / 2) for step in range(1, last + 1)} for last in (8, 12)
    ]


def test_null_writer_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NullWriter() as writer:
        writer.write(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []
