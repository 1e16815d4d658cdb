# SPDX-License-Identifier: Apache-2.0
"""Weights on labelled images: the run's own numbers, figures, tables; one process prints."""

import csv
import os
import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image
from support.places import ROOT
from support.shared_runs import PHOTO_STEPS

from mambaout_jax.cli.main import main
from mambaout_jax.evaluation.assess import assess, assessment_config


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
    workdir = photo_run[0]
    for name in ("a", "b", "c"):
        (tmp_path / "three" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40)).save(tmp_path / "three" / name / f"{i}.png")
    arguments = ["evaluate", "--workdir", str(workdir), "--data", str(tmp_path / "three")]
    assert main(arguments) == 2
    assert f"the data have 3 classes and {workdir} has 2" in capsys.readouterr().err


def test_evaluate_takes_the_data_of_another_config(photo_run, tmp_path, capsys):
    digits = str(ROOT / "tests" / "support" / "tiny_run.py")
    arguments = ["--workdir", str(photo_run[0]), "--config", digits, "--figures", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 2
    assert "the data have 10 classes and " in capsys.readouterr().err


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
    assert main(command) == 0
    as_trained = capsys.readouterr().out.split("\n")[0]
    there = shutil.copytree(photos, tmp_path / "copied")
    assert main([*command, f"--config.data.path={there}"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == as_trained
    darker = ["--config.data.mean=(3.0, 3.0, 3.0)", "--config.data.std=(0.1, 0.1, 0.1)"]
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
