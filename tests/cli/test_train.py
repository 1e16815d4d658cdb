# SPDX-License-Identifier: Apache-2.0
"""`mambaout train`: settings, the dry run, exit codes and where runs go."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support import tiny_run
from support.command_line import error_line, usage_error

from mambaout_jax.cli.main import main
from mambaout_jax.runtime.bucket import BucketError
from mambaout_jax.runtime.checkpoint import SaveError
from mambaout_jax.runtime.lock import DirectoryLock
from mambaout_jax.train import loop
from mambaout_jax.train.preemption import Preempted
from mambaout_jax.train.preview import describe
from mambaout_jax.train.writer import read_metrics
from mambaout_jax.weights.load import save_variables

TINY = tiny_run.__file__


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batchsize=3", 'Did you mean "batch_size" instead of "batchsize"?'),
        ("optimizer.learning_rat=1", 'Did you mean "learning_rate" instead of "learning_rat"?'),
        ("optimiser.learning_rate=1", 'Did you mean "optimizer" instead of "optimiser"?'),
        ("nothing.like.it=1", "there is no setting nothing"),
        ("batch_size=many", "batch_size=many is not allowed; it must be a whole number from 1"),
        ("batch_size=1.5", "batch_size=1.5 is not allowed; it must be a whole number from 1"),
        (
            "optimizer.learning_rate=fast",
            "learning_rate=fast is not allowed; it must be a number from 0",
        ),
        ("model.name=mambaout_mikro", "did you mean mambaout_micro"),
        ("checkpoint.every_epochs=0", "checkpoint.every_epochs=0.0 is not allowed; it must be a n"),
        ("schedule.cooldown_steps=-12", "schedule.cooldown_steps=-12 is not allowed; it must be"),
        ("schedule.total_epochs=inf", "schedule.total_epochs=inf is not allowed; it must be a num"),
        ("seed=9223372036854775808", "seed=9223372036854775808 is not allowed; it must be a who"),
        ("augment.shift_pixels=64", "augment.shift_pixels=64 can move the whole image of"),
        ("data.source=folder", "set --config.data.path=DIR"),
        ("batch_size=12", "does not divide into 8 devices x 1 micro-batches"),
    ],
)
def test_wrong_setting_is_one_line(capsys, tmp_path, monkeypatch, setting, words):
    monkeypatch.chdir(tmp_path)
    assert words in error_line(capsys, "train", "--config", TINY, f"--config.{setting}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=str)
def test_weights_that_are_not_there_are_one_line_and_leave_no_trace(
    capsys, tmp_path, monkeypatch, more
):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", TINY, "--config.model.pretrained=nonsense", *more]
    words = "model.pretrained='nonsense': there are no weights 'nonsense'"
    assert words in error_line(capsys, *command)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_leave_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mambaout_micro.safetensors"
    save_variables({"params": {"backbone": {"stem": np.zeros(3, np.float32)}}}, path)
    assert main(["train", "--config", TINY, f"--config.model.pretrained={path}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [path]


def test_stray_word_is_one_line(capsys):
    words = "unexpected argument 'runs/one'; settings look like --config.key=value"
    assert words in error_line(capsys, "train", "--config", TINY, "runs/one")


def test_missing_config_file_is_one_line(capsys, tmp_path):
    path = tmp_path / "none.py"
    words = f"there is no config file {path}; a clone of the project has them in experiments/"
    assert words in error_line(capsys, "train", "--config", str(path))


def test_file_without_get_config_is_one_line(capsys, tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("config = 1\n")
    assert f"{path} has no get_config()" in error_line(capsys, "train", "--config", str(path))


def test_failure_of_the_run_has_code_1(capsys):
    command = ["train", "--config", TINY, "--config.require_accelerator=True"]
    words = "error: require_accelerator=True, but JAX finds only"
    assert error_line(capsys, *command, code=1).startswith(words)


def test_dry_run_prints_the_recipe_and_leaves_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", TINY, "--dry-run", "--workdir", "run", "--config.batch_size=64"]
    assert main(command) == 0
    config = tiny_run.get_config()
    config.batch_size = 64
    out = capsys.readouterr().out
    assert out == describe(config) + "\n"
    assert "effective batch    64 = 8 devices x 8 examples x 1 micro-batches" in out
    assert list(tmp_path.iterdir()) == []


def test_force_is_for_a_picture(capsys):
    words = "--force goes with --show-batch: a run is resumed, never replaced"
    assert words in usage_error(capsys, "train", "--config", TINY, "--force")


def test_preempted_run_has_code_75(capsys, monkeypatch):
    def train(config, workdir):
        raise Preempted(7, workdir / "checkpoints")

    monkeypatch.setattr(loop, "train", train)
    assert main(["train", "--config", TINY]) == 75
    assert capsys.readouterr().err.startswith(
        "stopped after step 7 as asked; the state is in runs/"
    )


@pytest.mark.parametrize("kind", [SaveError, BucketError])
def test_a_run_that_cannot_save_ends_without_waiting_for_threads(kind, capfd, monkeypatch):
    def train(config, workdir):
        raise kind("a checkpoint could not be written")

    def end(code):
        raise SystemExit(code)  # in place of os._exit, which nothing outlives

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", TINY])
    assert stop.value.code == 1
    assert capfd.readouterr().err == "error: a checkpoint could not be written\n"


def test_a_workdir_in_use_is_refused_before_anything_is_read(capsys, tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    command = ["train", "--config", "none.py", "--workdir", str(tmp_path)]
    assert f"{tmp_path} is in use by process {os.getpid()} on" in error_line(
        capsys, *command, code=1
    )
    lock.release()
    assert "there is no config file none.py" in error_line(capsys, *command)


def test_argument_of_a_config_does_not_name_the_run(capsys, tmp_path, monkeypatch):
    file = tmp_path / "sizes.py"
    file.write_text(
        textwrap.dedent("""
        from mambaout_jax.config import default_config
        def get_config(name):
            config = default_config()
            config.model.name = name
            return config
        """)
    )
    runs = []

    def train(config, workdir):
        runs.append((config.model.name, workdir))
        return {}

    monkeypatch.setattr(loop, "train", train)
    assert main(["train", "--config", f"{file}:mambaout_base"]) == 0
    assert runs == [("mambaout_base", Path("runs/sizes"))]


@pytest.mark.slow
def test_train_goes_to_runs_by_default_and_evaluate_reads_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", TINY]) == 0
    workdir = Path("runs") / "tiny_run"
    printed = capsys.readouterr().out.strip().split("\n")[-1]
    last = json.loads((workdir / "metrics.jsonl").read_text().strip().split("\n")[-1])
    assert last["step"] == 30
    assert (
        f"step 30  eval/loss {last['eval/loss']:.4g}  eval/top1 {last['eval/top1']:.4g}" in printed
    )
    assert printed.endswith(" s, runs/tiny_run)")

    assert main(["evaluate", "--workdir", str(workdir), "--config.evaluation.batch_size=360"]) == 0
    assert capsys.readouterr().out.strip() == printed.split("  (")[0]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["| true", ">&- 2>&-"])
def test_training_goes_on_where_nobody_reads(tmp_path, output):
    settings = "--config.schedule.total_steps=9 --config.log.every_steps=1"
    command = f'"{sys.executable}" -m mambaout_jax train --config "{TINY}" --workdir run {settings}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {output}"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment,
    )  # fmt: skip
    warnings = [] if "2>" in output else ["standard output cannot be written to"]
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == len(warnings)
    assert all(words in result.stderr for words in warnings)
    assert read_metrics(tmp_path / "run")[-1]["step"] == 9
    assert (tmp_path / "run" / "checkpoints" / "9").is_dir()
