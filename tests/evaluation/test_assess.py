# SPDX-License-Identifier: Apache-2.0
"""Weights on labelled images: the run's own numbers, figures, tables; one process prints."""

import csv
import math
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.image_folders import write_classes
from support.places import ROOT
from support.shared_runs import PHOTO_STEPS

from mambaout_jax.cli.main import main
from mambaout_jax.config_file import load_config
from mambaout_jax.evaluation import assess as module
from mambaout_jax.evaluation.assess import assess, assessment_config
from mambaout_jax.tasks.classification import Classification


@pytest.fixture(scope="module")
def assessment(photo_run):
    workdir = photo_run[0]
    return assess(workdir, assessment_config(workdir))


def test_a_run_on_photographs_learns_them(photo_run):
    # Two photographs of different colours: two thirds and one third of the width.
    _, metrics, _ = photo_run
    assert metrics["step"] == PHOTO_STEPS
    assert metrics["eval/top1"] >= 80


def test_assessment_agrees_with_the_runs_own_evaluation(photo_run, assessment):
    metrics = photo_run[1]
    for name in ("top1", "top5", "loss"):
        assert assessment.metrics[name] == pytest.approx(metrics[f"eval_ema/{name}"], rel=1e-5)
    assert assessment.metrics["count"] == 24
    mistakes = assessment.task.mistakes(assessment.partial)
    assert 24 - len(mistakes) == pytest.approx(0.24 * assessment.metrics["top1"])
    for index, label, guess, probability in mistakes:
        assert assessment.data[index]["label"] == label != guess
        assert 0.5 <= probability <= 1  # the likelier of two
    assert assessment.task.class_names == ("china", "flower")


def test_evaluate_writes_matrix_table_and_mistakes(photo_run, assessment, tmp_path, capsys):
    workdir, metrics, photos = photo_run
    arguments = ["evaluate", "--workdir", str(workdir), "--figures", str(tmp_path)]
    assert main([*arguments, "--data", str(photos)]) == 0
    output = capsys.readouterr().out
    assert f"top1 {metrics['eval_ema/top1']:.4g}" in output
    assert "count 24" in output
    assert (tmp_path / "confusion_matrix.png").is_file()
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["count"]) for row in rows) == 24
    wrong = assessment.task.mistakes(assessment.partial)
    assert sum(int(row["correct"]) for row in rows) == 24 - len(wrong)
    assert (tmp_path / "mistakes.png").is_file() == bool(wrong)


def test_other_classes_are_refused(photo_run, tmp_path, capsys):
    arguments = ["evaluate", "--workdir", str(photo_run[0]), "--data", str(tmp_path)]
    write_classes(tmp_path, china=1, rose=1, tulip=1)
    assert main(arguments) == 2
    words = "have no class that is called 'rose', 'tulip'; theirs are 'china', 'flower': call the"
    assert words in capsys.readouterr().err


def test_evaluate_takes_the_data_of_another_config(photo_run, tmp_path, capsys):
    digits = str(ROOT / "tests" / "support" / "tiny_run.py")
    arguments = ["--workdir", str(photo_run[0]), "--config", digits, "--figures", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 2
    assert "no class that is called '0', '1', '2', '3', '4' and 5 more" in capsys.readouterr().err


def test_all_images_of_other_folders_count_by_the_names_of_their_classes(photo_run, tmp_path):
    workdir, _, photos = photo_run
    files = sorted((photos / "val" / "flower").iterdir())
    for path in (tmp_path / "flower", tmp_path / "china"):
        path.mkdir()
    shutil.copy(files[0], tmp_path / "flower")
    one = assess(workdir, assessment_config(workdir, tmp_path))
    assert one.metrics["count"] == 1
    assert [one.data[0]["label"], one.task.class_names[1]] == [1, "flower"]
    (tmp_path / "china").rmdir()
    assert assess(workdir, assessment_config(workdir, tmp_path)).metrics == one.metrics


def test_a_run_keeps_what_it_held_out_of_its_own_folder(photo_run, tmp_path, monkeypatch):
    workdir, _, photos = photo_run
    config = load_config(workdir / "config.json")
    fraction = config.data.validation_fraction
    assert 0 < fraction < 1

    def held_out(folder):
        return assessment_config(workdir, folder, config).data.validation_fraction

    assert held_out(photos) == fraction
    (tmp_path / "link").symlink_to(photos)
    assert held_out(tmp_path / "link") == fraction
    # Moved: the training images are known by their names.
    shutil.copytree(photos, tmp_path / "moved")
    assert held_out(tmp_path / "moved") == fraction
    next((tmp_path / "moved" / "train" / "china").iterdir()).unlink()
    assert held_out(tmp_path / "moved") == 1
    assert held_out(photos / "val") == 1


def test_figures_are_replaced_by_force_only(photo_run, tmp_path, capsys, monkeypatch):
    arguments = ["evaluate", "--workdir", str(photo_run[0]), "--figures", str(tmp_path)]
    monkeypatch.setattr(module, "assess", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "per_class.csv").touch()
    assert main(arguments) == 2
    assert "per_class.csv exists; name another file, or replace it with" in capsys.readouterr().err
    monkeypatch.setattr(module, "assess", lambda *_: SimpleNamespace(metrics={}, draw=lambda _: []))
    assert main([*arguments, "--force"]) == 0
    (tmp_path / "file").touch()
    assert main([*arguments[:-1], str(tmp_path / "file" / "figures")]) == 2
    assert "cannot be made a folder: Not a directory" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(photo_run, monkeypatch):
    workdir = photo_run[0]
    monkeypatch.setattr(Classification, "metrics", lambda *_: {"loss": math.nan, "top1": 0.0})
    with pytest.raises(FloatingPointError, match=f"outputs of {workdir} are not finite"):
        assess(workdir, assessment_config(workdir))


def test_weights_without_a_run_need_data(tmp_path):
    with pytest.raises(ValueError, match=r"femto.in1k is not a training run; give .* --data DIR"):
        assessment_config("mambaout_femto.in1k")
    config = assessment_config("mambaout_femto.in1k", tmp_path)
    assert (config.data.source, config.data.path) == ("folder", str(tmp_path))
    assert (config.data.image_size, config.data.crop_fraction) == (224, 1.0)


@pytest.mark.slow
def test_settings_choose_and_prepare_the_data_of_an_evaluation(photo_run, tmp_path, capsys):
    workdir, _, photos = photo_run
    command = ["evaluate", "--workdir", str(workdir), "--figures", str(tmp_path / "figures")]
    command.append("--force")  # the same figures again
    assert main(command) == 0
    as_trained = capsys.readouterr().out.split("\n")[0]
    there = shutil.copytree(photos, tmp_path / "copied")
    assert main([*command, f"--config.data.path={there}"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == as_trained
    darker = ["--config.data.mean=(1.0, 1.0, 1.0)", "--config.data.std=(0.1, 0.1, 0.1)"]
    assert main([*command, *darker]) == 0
    assert capsys.readouterr().out.split("\n")[0] != as_trained


@pytest.mark.slow
def test_two_processes_count_every_image_once_and_one_prints(photo_run, tmp_path, capsys):
    workdir, _, photos = photo_run
    command = ["evaluate", "--workdir", str(workdir), "--data", str(photos)]
    assert main(command) == 0
    alone = capsys.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mambaout_jax", *command, "--config.evaluation.batch_size=6",
             "--figures", str(tmp_path / str(index)), f"--distributed={address},2,{index}"],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (
        [line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in outputs
    )
    assert first[0] == alone.strip()
    assert first[1:3] == [str(tmp_path / "0" / name) for name in ("confusion_matrix.png",
                                                                  "per_class.csv")]  # fmt: skip
    assert second == []
    assert not (tmp_path / "1").exists()
    table = (tmp_path / "0" / "per_class.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [int(row["count"]) for row in rows] == [12, 12]
