# SPDX-License-Identifier: Apache-2.0
"""Runs in a bucket end as local ones do, also after a kill, and are read by the other verbs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.places import ROOT
from support.runs import checkpoints, final_state, flip_a_byte_of_the_data, timeless_metrics
from support.tiny_run import get_config

from mambaout_jax.cli import evaluate as evaluate_verb
from mambaout_jax.cli.main import main
from mambaout_jax.runtime import bucket as bucket_file
from mambaout_jax.runtime import mirror as mirror_file
from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.bucket_lock import BucketLock
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.workdir import run_copy, run_folder
from mambaout_jax.train.loop import train
from mambaout_jax.train.preemption import Preempted
from mambaout_jax.weights import load

ADDRESS = "gs://bucket/runs/a"
SCHEMES = pytest.mark.parametrize("scheme", ["gs", "s3"])


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def upload(server, folder):
    for path in folder.rglob("*"):
        if path.is_file():
            server.put(f"runs/a/{path.relative_to(folder).as_posix()}", path.read_bytes())


def bucket_contents(server, folder):
    """Writes what the bucket holds of the run into a folder."""
    for name, data in server.objects.items():
        path = folder / name.removeprefix("runs/a/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_a_path_is_its_own_folder(tmp_path):
    for opened in (run_folder, run_copy):
        with opened(tmp_path / "run") as folder:
            assert folder == tmp_path / "run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("opened", [run_folder, run_copy])
def test_several_processes_are_refused_at_once(opened, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = rf"^{ADDRESS} is in a bucket, and this run has 2 processes, .* mount the bucket on every"
    with pytest.raises(ValueError, match=said), opened(ADDRESS):
        pass


@SCHEMES
def test_what_is_written_in_the_folder_is_in_the_bucket_at_the_end(
    scheme, bucket_server, own_temporary_folder
):
    address = f"{scheme}://bucket/runs/a"
    for number in range(2):
        with run_folder(address) as folder:
            assert folder.is_relative_to(own_temporary_folder)
            names = [path.name for path in folder.iterdir()]
            assert names == ["log.txt"] * number
            (folder / "log.txt").write_text(f"line {number}")
            assert "runs/a/run.lock" in bucket_server.objects
        assert bucket_server.objects == {"runs/a/log.txt": f"line {number}".encode()}
        assert list(own_temporary_folder.iterdir()) == []


@pytest.mark.parametrize("opened", [run_folder, run_copy])
def test_errors_name_the_address_and_not_the_folder(opened, bucket_server):
    bucket_server.put("runs/a/config.json", b"{}")
    said = f"^{ADDRESS}/config.json is damaged$"
    with pytest.raises(ValueError, match=said), opened(ADDRESS) as folder:
        raise ValueError(f"{folder / 'config.json'} is damaged")
    with pytest.raises(Preempted) as preempted, opened(ADDRESS) as folder:
        raise Preempted(3, folder / "checkpoints" / "3")
    assert f"the state is in {ADDRESS}/checkpoints/3: run the same" in str(preempted.value)


def test_a_copy_has_the_newest_complete_checkpoint_and_goes(
    tiny_run, bucket_server, own_temporary_folder
):
    run, _ = tiny_run
    upload(bucket_server, run)
    del bucket_server.objects["runs/a/checkpoints/30/meta/data.json"]  # half uploaded
    before = dict(bucket_server.objects)
    with run_copy(ADDRESS) as folder:
        assert checkpoints(folder) == [22]
        assert read_checkpoint(folder / "checkpoints").step == 22
        assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    with run_copy(ADDRESS, checkpoint=False) as folder:
        assert not (folder / "checkpoints").exists()
    assert list(own_temporary_folder.iterdir()) == []
    assert (bucket_server.objects, bucket_server.changes) == (before, [])


def test_a_damaged_checkpoint_is_passed_over(tiny_run, bucket_server, tmp_path):
    upload(bucket_server, tiny_run[0])
    copy = bucket_contents(bucket_server, tmp_path / "copy")
    flip_a_byte_of_the_data(copy / "checkpoints" / "30")
    upload(bucket_server, copy)
    with run_copy(ADDRESS) as folder:
        assert checkpoints(folder) == [22, 30]  # from which the reader chooses, with a warning


def test_where_no_run_is_nothing_is_read(bucket_server):
    said = f"^{ADDRESS}/config.json is missing; the address should be the --workdir"
    with pytest.raises(FileNotFoundError, match=said), run_copy(ADDRESS):
        pass


def test_a_second_start_is_refused(bucket_server, capsys):
    lock = BucketLock(Bucket(ADDRESS))
    lock.acquire()
    before = dict(bucket_server.objects)
    said = f"{ADDRESS} is in use by process {os.getpid()} on {socket.gethostname()}, since "
    with pytest.raises(RuntimeError, match=f"^{re.escape(said)}"):
        train(get_config(), ADDRESS)
    assert main(["train", "--config", "no.py", "--workdir", ADDRESS]) == 1  # before all else
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert bucket_server.objects == before
    lock.release()


def test_curves_evaluate_and_predict_read_a_run_in_a_bucket(
    tiny_run, bucket_server, tmp_path, monkeypatch, capsys
):
    run, _ = tiny_run
    upload(bucket_server, run)
    seen = []

    def note(folder):
        seen.append(json.loads((Path(folder) / "config.json").read_text()))
        seen.append(checkpoints(Path(folder)))
        raise RuntimeError(f"{folder} is seen")

    drawn = "mambaout_jax.analysis.figures.draw_curves"
    monkeypatch.setattr(drawn, lambda metrics, out: seen.append(metrics))
    assert main(["analyse", "curves", ADDRESS, "--out", str(tmp_path / "a.png")]) == 0
    assert list(seen[0]) == [ADDRESS]
    assert seen.pop()[ADDRESS][-1]["step"] == 30
    monkeypatch.setattr(evaluate_verb, "_evaluate_run", lambda given, _: note(given.workdir))
    monkeypatch.setattr(evaluate_verb, "_evaluate_images", lambda given, _: note(given.weights))
    monkeypatch.setattr(load, "describe_source", lambda weights, *_: note(weights))
    for command in (
        ["evaluate", "--workdir"],
        ["evaluate", "--data=images", "--weights"],
        ["predict", "image.png", "--weights"],
    ):
        capsys.readouterr()
        assert main([*command, ADDRESS]) == 1
        assert capsys.readouterr().err == f"error: {ADDRESS} is seen\n"
        assert seen == [json.loads((run / "config.json").read_text()), [30]]
        seen.clear()


@pytest.mark.slow
@SCHEMES
def test_a_run_in_a_bucket_is_the_one_in_a_folder(
    scheme, tiny_run, bucket_server, tmp_path, own_temporary_folder, capsys
):
    run, metrics = tiny_run
    address = f"{scheme}://bucket/runs/a"
    assert train(get_config(), address) == metrics
    copy = bucket_contents(bucket_server, tmp_path / "copy")
    assert timeless_metrics(copy) == timeless_metrics(run)
    assert final_state(copy) == final_state(run)
    assert checkpoints(copy) == [11, 22, 30]
    assert not (copy / "run.lock").exists()
    assert list(own_temporary_folder.iterdir()) == []
    assert train(get_config(), address) == metrics  # resumes at the end
    assert main(["evaluate", "--workdir", address]) == 0
    assert f"eval/top1 {metrics['eval/top1']:.4g}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "name"),
    [("gs", "checkpoints/11/state/manifest.ocdbt"), ("s3", "checkpoints/22/meta/data.json")],
)
def test_killed_runs_in_a_bucket_end_as_if_nothing_had_happened(
    scheme, name, tiny_run, bucket_server, tmp_path
):
    run, _ = tiny_run
    code = (
        "import sys; from mambaout_jax.runtime import mirror; mirror._PAUSE_SECONDS = 0.05; "
        "from mambaout_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        *(sys.executable, "-c", code, "train", "--config", "tests/support/tiny_run.py"),
        *("--workdir", f"{scheme}://bucket/runs/a"),
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}

    def start():
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)

    process = start()

    def kill_at(method, written):
        if (method, written) == ("PUT", f"runs/a/{name}"):
            process.send_signal(signal.SIGKILL)

    bucket_server.refuse = kill_at
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    bucket_server.refuse = lambda method, name: None
    process = start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    copy = bucket_contents(bucket_server, tmp_path / "copy")
    assert timeless_metrics(copy) == timeless_metrics(run)
    assert final_state(copy) == final_state(run)
    assert list((tmp_path / "tmp").glob("mambaout_run_*")) == []


@pytest.mark.slow
def test_a_bucket_that_fails_at_the_end_loses_nothing(
    tiny_run, bucket_server, own_temporary_folder, monkeypatch
):
    monkeypatch.setattr(mirror_file, "_PAUSE_SECONDS", 0.05)
    retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(bucket_file, "_CONTEXT", {"gcs_request_retries": retries})
    bucket_server.refuse = lambda method, name: 503 if "/30/" in name else None
    with pytest.raises(BucketError, match="The last state of this run could not be uploaded"):
        train(get_config(), ADDRESS)
    (kept,) = own_temporary_folder.glob("*_not_uploaded_1")
    assert final_state(kept) == final_state(tiny_run[0])
    bucket_server.refuse = lambda method, name: None
    upload(bucket_server, kept)
    with run_copy(ADDRESS) as folder:
        assert final_state(folder) == final_state(tiny_run[0])
