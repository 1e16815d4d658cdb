# SPDX-License-Identifier: Apache-2.0
"""Predictions of a run on photographs, by command and by function, and other verbs on that run."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image

from mambaout_jax.cli.main import main
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.views.crops import EvaluationView
from mambaout_jax.evaluation.predict import Predictor, make_predictor, predict_files
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.weights.load import load_pretrained


def test_predictions_are_the_models_own(photo_run):
    workdir, _, photos = photo_run
    predictor = make_predictor(workdir)
    predictions = list(predict_files(predictor, [photos / "val"], top=2, batch_size=5))
    assert [p.path for p in predictions] == sorted((photos / "val").rglob("*.jpg"))
    model, variables = load_pretrained(workdir)
    apply, how = jax.jit(model.apply), predictor.preprocessing
    for prediction in predictions[::7]:
        # The oracle: Pillow and one plain call of the model.
        pixels = Image.open(prediction.path).convert("RGB").resize((32, 32), Image.BICUBIC)
        image = (np.asarray(pixels, np.float32) / 255 - how.mean) / how.std
        logits = apply(variables, image[None].astype(np.float32))
        probabilities = np.asarray(jax.nn.softmax(logits))[0]
        found = [row["probability"] for row in prediction.findings]
        assert found == pytest.approx(np.sort(probabilities)[::-1], abs=1e-5)
        assert prediction.findings[0]["name"] == ("china", "flower")[probabilities.argmax()]


def test_predict_prints_names_and_percent(photo_run, tmp_path, capsys):
    workdir, _, photos = photo_run
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


def test_wrong_images_are_named(photo_run, tmp_path, capsys):
    workdir, _, _ = photo_run
    weights = ["predict", "--weights", str(workdir)]
    assert main([*weights, str(tmp_path / "no.jpg")]) == 2
    assert "there is no image or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*weights, str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.png")
    assert main([*weights, str(tmp_path / "pipe.png")]) == 2
    assert "pipe.png is neither an image file nor a folder" in capsys.readouterr().err


def test_unreadable_images_are_passed_over_and_told(photo_run, tmp_path, capsys):
    workdir, _, photos = photo_run
    shutil.copy(photos / "val" / "china" / "000.jpg", tmp_path / "b.jpg")
    shutil.copy(photos / "val" / "flower" / "000.jpg", tmp_path / os.fsdecode(b"\xe9.jpg"))
    (tmp_path / "a.jpg").write_text("not an image")
    (tmp_path / "._b.jpg").write_text("of macOS")
    command = ["predict", "--weights", str(workdir), str(tmp_path), "--top=1"]
    grid = tmp_path / "grid.png"
    assert main([*command, "--grid", str(grid)]) == 1
    out, err = capsys.readouterr()
    files = [line for line in out.splitlines() if not line.startswith(" ")]
    assert files == [str(tmp_path / "b.jpg"), f"{tmp_path}/\\udce9.jpg"]
    words = "no image format starts with b'not an image'"
    assert err == f"error: cannot read {tmp_path}/a.jpg: {words}\n"
    assert grid.is_file()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / os.fsdecode(b"\xe9.jpg")).unlink()
    grid.unlink()
    assert main(command) == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        list(predict_files(make_predictor(workdir), [tmp_path]))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """`Means` is no whole task, as annotations say of it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Means:
    """A task whose finding is the mean of an image."""

    def view_image(self, image):
        return {"image": EvaluationView(Preprocessing(8)).pixels(image)}

    def images_at_once(self):
        return 4

    def findings(self, output, top):
        return ({"name": "mean", "probability": float(output)},)


def predictor(run=lambda images: images.mean(axis=(1, 2, 3))):
    return Predictor(Means(), run, 3, Preprocessing(8), "runs/x")


def test_predictor_takes_batches_only():
    assert predictor()(np.zeros((2, 8, 8, 3), np.uint8)).tolist() == [0, 0]
    for images in (
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
    ):
        words = re.escape(f"images are {images.dtype} {images.shape}; give uint8 (B, H, W, 3)")
        with pytest.raises(ValueError, match=words):
            predictor()(images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_name_the_weights(tmp_path, value):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    broken = predictor(lambda images: jnp.full(len(images), value))
    with pytest.raises(FloatingPointError, match="the outputs of runs/x are not finite"):
        next(predict_files(broken, [tmp_path]))


def test_nothing_to_predict_is_nothing():
    assert list(predict_files(predictor(), [])) == []


@pytest.mark.parametrize("name", ["top", "batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} is out of range; .* at least 1"):
        next(predict_files(predictor(), [], **{name: value}))


def test_a_file_may_be_named_twice(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = list(predict_files(predictor(), [tmp_path / "a.png", tmp_path], batch_size=8))
    assert [prediction.path for prediction in found] == [tmp_path / "a.png"] * 2


def test_curves_of_several_runs_are_one_picture(photo_run, tmp_path, capsys):
    workdir, _, _ = photo_run
    out = tmp_path / "curves.png"
    assert main(["analyse", "curves", str(workdir), "--out", str(out)]) == 0
    assert out.is_file()
    assert main(["analyse", "curves", str(tmp_path), "--out", str(tmp_path / "b.png")]) == 2
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
def test_convert_there_and_back(photo_run, tmp_path, capsys, naming):
    workdir, _, _ = photo_run
    out = tmp_path / "out.safetensors"
    arguments = ["convert", str(workdir), str(out)] + (["--naming", naming] if naming else [])
    assert main(arguments) == 0
    assert re.search(r"mambaout_micro, 2 classes, .* round trip: \d+ tensors equal bit for bit",
                     capsys.readouterr().out)  # fmt: skip
    _, variables = load_pretrained(workdir)
    _, again = load_pretrained(out, "mambaout_micro", depths=(1, 1), dims=(16, 32))
    for one, other in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
