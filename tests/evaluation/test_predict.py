# SPDX-License-Identifier: Apache-2.0
"""Predictions and assessments of a run on photographs, by command and by function."""

import csv
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from support.photo_patches import write_photo_patches
from support.places import ROOT

from mambaout_jax.cli.main import main
from mambaout_jax.config_file import override, read_config
from mambaout_jax.data.sets.sources import open_source
from mambaout_jax.evaluation.predict import assess, assessment_config, make_predictor, predict_files
from mambaout_jax.train.loop import train
from mambaout_jax.weights.load import load_pretrained

FOLDER_RECIPE = str(ROOT / "experiments" / "folder.py")
STEPS = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photo_patches(folder)
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """experiments/folder.py on the photographs, with a small model and few updates."""
    workdir = tmp_path_factory.mktemp("run")
    config = override(
        read_config(f"{FOLDER_RECIPE}:mambaout_micro"),
        [f"--config.data.path={photos}", "--config.batch_size=16", "--config.data.image_size=32",
         f"--config.schedule.total_steps={STEPS}", "--config.schedule.warmup_steps=3",
         "--config.optimizer.learning_rate=4e-3", "--config.ema.decay=0.8",
         "--config.data.num_threads=2",
         "--config.evaluation.every_steps=100", "--config.checkpoint.every_steps=100"],
    )  # fmt: skip
    with config.model.options.unlocked():
        config.model.options.depths = (1, 1)
        config.model.options.dims = (16, 32)
    return workdir, train(config, workdir)


def test_a_run_on_photographs_learns_them(run):
    # Two photographs of different colours: two thirds and one third of the width.
    _, metrics = run
    assert metrics["step"] == STEPS
    assert metrics["eval/top1"] >= 80


def test_assessment_agrees_with_the_runs_own_evaluation(run):
    workdir, metrics = run
    config = assessment_config(workdir)
    data = open_source(config.data, "validation")
    assessment = assess(make_predictor(workdir), config, data)
    assert assessment.metrics["top1"] == pytest.approx(metrics["eval_ema/top1"])
    assert assessment.metrics["count"] == assessment.matrix.sum() == 24
    assert assessment.metrics["top1"] == pytest.approx(100 * np.trace(assessment.matrix) / 24)
    assert len(assessment.mistakes) == 24 - np.trace(assessment.matrix)
    assert assessment.class_names == ("china", "flower")


def test_predictions_are_the_models_own(run, photos):
    workdir, _ = run
    predictor = make_predictor(workdir)
    predictions = list(predict_files(predictor, [photos / "val"], top=2, batch_size=5))
    assert [p.path for p in predictions] == sorted((photos / "val").rglob("*.jpg"))
    model, variables = load_pretrained(workdir)
    how = predictor.preprocessing
    for prediction in predictions[::7]:
        # The oracle: Pillow and one plain call of the model.
        pixels = Image.open(prediction.path).convert("RGB").resize((32, 32), Image.BICUBIC)
        image = (np.asarray(pixels, np.float32) / 255 - how.mean) / how.std
        logits = jax.jit(model.apply)(variables, image[None].astype(np.float32))
        probabilities = np.asarray(jax.nn.softmax(logits))[0]
        assert prediction.probabilities == pytest.approx(np.sort(probabilities)[::-1], abs=1e-5)
        assert prediction.classes[0] == ("china", "flower")[probabilities.argmax()]


def test_predict_prints_names_and_percent(run, photos, tmp_path, capsys):
    workdir, _ = run
    file = str(photos / "val" / "china" / "000.jpg")
    grid = tmp_path / "grid.png"
    assert main(["predict", "--weights", str(workdir), file, "--grid", str(grid)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == file
    shares = [float(re.fullmatch(r"  +([\d.]+) %  (china|flower)", line)[1]) for line in lines[1:]]
    assert len(shares) == 2  # there are no five classes
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares[0] >= shares[1]
    with Image.open(grid) as image:
        assert min(image.size) > 32

    assert main(["predict", "--weights", str(workdir), file, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == file
    assert row["classes"][0]["probability"] == pytest.approx(shares[0] / 100, abs=1e-3)


def test_evaluate_writes_matrix_table_and_mistakes(run, photos, tmp_path, capsys):
    workdir, metrics = run
    arguments = ["evaluate", "--workdir", str(workdir), "--figures", str(tmp_path)]
    assert main([*arguments, "--data", str(photos)]) == 0
    output = capsys.readouterr().out
    assert f"top1 {metrics['eval_ema/top1']:.4g}" in output
    assert (tmp_path / "confusion_matrix.png").is_file()
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["count"]) for row in rows) == 24
    assert (tmp_path / "mistakes.png").is_file() == (metrics["eval_ema/top1"] < 100)


def test_wrong_images_and_classes_are_named(run, photos, tmp_path, capsys):
    workdir, _ = run
    weights = ["predict", "--weights", str(workdir)]
    assert main([*weights, str(tmp_path / "no.jpg")]) == 2
    assert "there is no image or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*weights, str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err
    (tmp_path / "text.jpg").write_text("not an image")
    assert main([*weights, str(tmp_path / "text.jpg")]) == 2
    assert "text.jpg" in capsys.readouterr().err
    for name in ("a", "b", "c"):
        (tmp_path / "three" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40)).save(tmp_path / "three" / name / f"{i}.png")
    arguments = ["evaluate", "--workdir", str(workdir), "--data", str(tmp_path / "three")]
    assert main(arguments) == 2
    assert "the data have 3 classes and the model has 2" in capsys.readouterr().err


def test_show_batch_draws_the_augmented_batch(photos, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["train", "--config", FOLDER_RECIPE, f"--config.data.path={photos}",
                 "--config.batch_size=16", "--show-batch", str(sheet)]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(sheet)
    with Image.open(sheet) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).std(axis=0)
    assert colours.min() > 10  # photographs, not an empty sheet
    assert not (tmp_path / "runs").exists()


def test_curves_of_several_runs_are_one_picture(run, tmp_path, capsys):
    workdir, _ = run
    out = tmp_path / "curves.png"
    assert main(["analyse", "curves", str(workdir), "--out", str(out)]) == 0
    assert out.is_file()
    assert main(["analyse", "curves", str(tmp_path), "--out", str(out)]) == 2
    assert "give the working directory of a training run" in capsys.readouterr().err


def test_models_prints_the_table(capsys):
    assert main(["models", "*_femto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        "mambaout_femto", "7.30", "M", "1.15", "G", "78.88", "mambaout_femto.in1k"
    ]  # fmt: skip
    assert main(["models", "resnet*"]) == 2
    assert "no model matches 'resnet*'" in capsys.readouterr().err


@pytest.mark.parametrize("naming", ["timm", "official", None])
def test_convert_there_and_back(run, tmp_path, capsys, naming):
    workdir, _ = run
    out = tmp_path / "out.safetensors"
    arguments = ["convert", str(workdir), str(out)] + (["--naming", naming] if naming else [])
    assert main(arguments) == 0
    assert re.search(r"mambaout_micro, 2 classes, .* round trip: \d+ tensors equal bit for bit",
                     capsys.readouterr().out)  # fmt: skip
    _, variables = load_pretrained(workdir)
    _, again = load_pretrained(out, "mambaout_micro", depths=(1, 1), dims=(16, 32))
    for one, other in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_settings_choose_and_prepare_the_data_of_an_evaluation(run, photos, tmp_path, capsys):
    workdir, _ = run
    figures = ["--figures", str(tmp_path)]
    assert main(["evaluate", "--workdir", str(workdir), *figures]) == 0
    as_trained = capsys.readouterr().out.split("\n")[0]
    moved = photos.rename(photos.with_name("moved"))
    try:
        there = f"--config.data.path={moved}"
        assert main(["evaluate", "--workdir", str(workdir), *figures, there]) == 0
        assert capsys.readouterr().out.split("\n")[0] == as_trained
    finally:
        moved.rename(photos)
    darker = ["--config.data.mean=(3.0, 3.0, 3.0)", "--config.data.std=(0.1, 0.1, 0.1)"]
    assert main(["evaluate", "--workdir", str(workdir), *figures, *darker]) == 0
    assert capsys.readouterr().out.split("\n")[0] != as_trained


def test_evaluate_takes_the_data_of_another_config(run, tmp_path, capsys):
    workdir, _ = run
    digits = [
        "--config",
        str(ROOT / "tests" / "support" / "tiny_run.py"),
        "--figures",
        str(tmp_path),
    ]
    assert main(["evaluate", "--workdir", str(workdir), *digits]) == 2
    assert "the data have 10 classes and the model has 2" in capsys.readouterr().err
