# SPDX-License-Identifier: Apache-2.0
"""Loss, evaluation and findings of segmentation against float64 numpy, and a run of it."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mambaout_jax.config import default_config
from mambaout_jax.data.sets.scenes import Scenes
from mambaout_jax.evaluation.assess import assess, assessment_config
from mambaout_jax.evaluation.evaluator import evaluate
from mambaout_jax.evaluation.predict import make_predictor, predict_files
from mambaout_jax.layers.resize import mean_pool_to
from mambaout_jax.tasks import find_task
from mambaout_jax.tasks.segmentation import Segmentation
from mambaout_jax.tasks.task import Prediction, Score
from mambaout_jax.train.loop import train
from mambaout_jax.train.writer import read_metrics

NAMES = ("sky", "tree", "road")


class Means(nn.Module):
    """Means of 4 x 4 pixels are the logits of three classes, times a parameter."""

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        logits = mean_pool_to(images, tuple(-(-n // 4) for n in images.shape[1:3])) * scale
        coarse = mean_pool_to(images, tuple(-(-n // 16) for n in images.shape[1:3]))
        return (logits, coarse) if train else logits


VARIABLES = {"params": {"scale": jnp.ones(())}}


def task(**changes):
    config = default_config()
    config.task = "segmentation"
    config.data.image_size = 32
    config.segmentation.update(changes)
    return Segmentation(config, NAMES)


def resized(x, size):
    """(h, w, C) bilinear between outer edges, in float64."""
    for axis, m in enumerate(size):
        n = x.shape[axis]
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, n - 1), at - low
        part = part.reshape((-1,) + (1,) * (2 - axis)) if axis == 0 else part[None, :, None]
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits_of(image):
    return np.asarray(Means().apply(VARIABLES, jnp.asarray(image[None])), np.float64)[0]


def test_loss_divides_by_all_pixels_and_adds_the_auxiliary(rng):
    images = rng.standard_normal((2, 32, 48, 3), np.float32)
    labels = rng.integers(0, 3, (2, 32, 48)).astype(np.uint8)
    labels[0, :20] = 255
    batch = {"image": jnp.asarray(images), "labels": jnp.asarray(labels)}
    one = task(auxiliary_weight=0.3)
    loss, (_, sums) = jax.jit(functools.partial(one.loss, Means()))(
        VARIABLES["params"], {}, batch, jax.random.key(0)
    )
    expected = np.zeros((2, 2))
    for i in range(2):
        both = Means().apply(VARIABLES, batch["image"], train=True)
        for j, logits in enumerate(both):
            p = softmax(resized(np.asarray(logits[i], np.float64), (32, 48)))
            counted = labels[i] != 255
            chosen = np.take_along_axis(p[counted], labels[i][counted][:, None].astype(int), 1)
            expected[i, j] = -np.log(chosen).sum() / labels[i].size
    assert float(loss) == pytest.approx((expected @ [1, 0.3]).mean(), rel=1e-5)
    assert sums == {
        "loss": pytest.approx(2 * float(loss), rel=1e-6),
        "main_loss": pytest.approx(expected[:, 0].sum(), rel=1e-5),
        "auxiliary_loss": pytest.approx(expected[:, 1].sum(), rel=1e-5),
        "count": 2,
    }


def test_padding_is_zero_after_normalising():
    shape = jnp.asarray([[2, 3], [4, 4]])
    batch = {"image": jnp.full((2, 4, 4, 3), 255, jnp.uint8), "image_shape": shape}
    images = np.asarray(task().prepare(batch, jax.random.key(0))["image"])
    assert (images[0, :2, :3] > 2).all()
    assert (images[1] > 2).all()
    assert (images[0, 2:] == 0).all()
    assert (images[0, :, 3:] == 0).all()


def batch_of(rng, size=(32, 44), original=(37, 51)):
    images = 2 * rng.standard_normal((3, *size, 3), np.float32)
    labels = rng.integers(0, 3, (3, *original)).astype(np.uint8)
    labels[:, :5] = 255
    return {
        "image": jnp.asarray(images),
        "labels": jnp.asarray(labels),
        "index": jnp.arange(3) + 7,
        "mask": jnp.asarray([True, False, True]),
    }


def evaluated(one, batch):
    return jax.device_get(jax.jit(functools.partial(one.evaluate, Means()))(VARIABLES, batch))


def confusion_of(guesses, batch):
    confusion = np.zeros((3, 3), int)
    for guess, label, counts in zip(guesses, batch["labels"], batch["mask"], strict=True):
        if counts:
            known = np.asarray(label) != 255
            np.add.at(confusion, (np.asarray(label)[known], guess[known]), 1)
    return confusion


def test_classes_are_those_of_logits_resized_twice(rng):
    batch = batch_of(rng)
    partial = evaluated(task(), batch)
    guesses = [
        resized(resized(logits_of(x), (32, 44)), (37, 51)).argmax(-1)
        for x in np.asarray(batch["image"])
    ]
    np.testing.assert_array_equal(partial["confusion"], confusion_of(guesses, batch))
    assert partial["worst"]["index"].tolist() == [7, -1, 9]
    first = {name: array[:1] for name, array in batch.items()}
    own = confusion_of(guesses[:1], first)
    ious = [own[k, k] / (own[k].sum() + own[:, k].sum() - own[k, k]) for k in range(3)]
    assert partial["worst"]["iou"][0] == pytest.approx(np.mean(ious), rel=1e-5)


def test_scales_and_mirrored_images_are_averaged(rng):
    batch = batch_of(rng)
    partial = evaluated(task(evaluation_scales=(0.5, 1.25), evaluation_flip=True), batch)
    guesses = []
    for image in np.asarray(batch["image"], np.float64):
        total = 0
        for size in ((16, 22), (40, 55)):
            scaled = resized(image, size).astype(np.float32)
            for step in (1, -1):
                logits = resized(logits_of(scaled[:, ::step]), size)[:, ::step]
                total = total + softmax(resized(logits, (37, 51)))
        guesses.append(total.argmax(-1))
    expected = confusion_of(guesses, batch)
    assert (
        np.abs(partial["confusion"] - expected).sum() <= 4
    )  # where two are equal but for rounding
    assert np.abs(evaluated(task(), batch)["confusion"] - expected).sum() > 100


def test_crops_slide_over_the_image(rng):
    batch = batch_of(rng)
    partial = evaluated(task(evaluation_mode="slide", slide_stride=9), batch)
    guesses = []
    for image in np.asarray(batch["image"]):
        total, count = np.zeros((32, 44, 3)), np.zeros((1, 44, 1))
        for left in (0, 9, 12):
            total[:, left : left + 32] += resized(logits_of(image[:, left : left + 32]), (32, 32))
            count[:, left : left + 32] += 1
        guesses.append(resized(total / count, (37, 51)).argmax(-1))
    np.testing.assert_array_equal(partial["confusion"], confusion_of(guesses, batch))


def test_merging_keeps_the_worst_images():
    rng = np.random.default_rng(1)

    def partial(indices):
        return {
            "confusion": np.eye(3, dtype=np.int64),
            "worst": {
                "index": np.asarray(indices),
                "iou": rng.random(len(indices)),
                "classes": rng.integers(0, 3, (len(indices), 4, 4)).astype(np.uint8),
            },
        }

    parts = [partial([0, 1, 2, -1]), partial(list(range(3, 33))), partial(list(range(33, 63)))]
    merged = task().merge(parts)
    ious = {
        i: x for p in parts for i, x in zip(p["worst"]["index"], p["worst"]["iou"], strict=True)
    }
    del ious[-1]
    worst = sorted(ious, key=ious.get)[:24]
    assert merged["worst"]["index"].tolist() == worst
    np.testing.assert_array_equal(merged["confusion"], 3 * np.eye(3))
    folded = task().merge([task().merge(parts[:2]), parts[2]])
    jax.tree.map(np.testing.assert_array_equal, folded, merged)
    assert task().metrics(merged) == {"miou": 100, "macc": 100, "aacc": 100}
    assert task().score() == Score("miou", "points")


def test_findings_are_the_largest_classes_with_their_places():
    classes = np.array([[0, 0, 2], [0, 2, 2], [0, 0, 0]])
    probability = np.where(classes == 0, 0.9, 0.6)
    first, second = task().findings({"classes": classes, "probability": probability}, 5)
    assert (first["name"], second["name"]) == ("sky", "road")
    assert (first["share"], second["share"]) == (pytest.approx(6 / 9), pytest.approx(3 / 9))
    assert second["probability"] == pytest.approx(0.6)
    np.testing.assert_array_equal(rle.decode(second["mask"]), classes == 2)
    assert len(task().findings({"classes": classes, "probability": probability}, 1)) == 1


def test_pictures(tmp_path, rng):
    """Grids of images with labels, of the worst images, and of predictions."""
    one = find_task("segmentation")(task().config, Scenes("train", "segmentation", 32).class_names)
    source = Scenes("validation", "segmentation", 32)
    labels = rng.integers(0, 11, (2, 32, 32))
    labels[0, :9] = 255
    images = rng.standard_normal((2, 32, 32, 3), np.float32)
    batch = {"image": jnp.asarray(images), "labels": jnp.asarray(labels)}
    one.draw_batch(batch, tmp_path / "batch.png")
    matrix = np.diag(np.arange(11)) + 1
    worst = {
        "index": np.array([4, 1]),
        "iou": np.array([0.25, 0.5]),
        "classes": rng.integers(0, 11, (2, 128, 128)).astype(np.uint8),
    }
    files = one.draw_evaluation({"confusion": matrix, "worst": worst}, source, tmp_path / "figures")
    assert {file.name for file in files} == set(one.evaluation_files())
    assert files[1].read_text().splitlines()[11].startswith("9,21,")
    image = rng.integers(0, 256, (32, 40, 3)).astype(np.uint8)
    findings = one.findings({"classes": labels[1], "probability": np.ones((32, 32))}, 3)
    shown = Prediction(Path("a.png"), image[:, :32], findings)
    one.draw_predictions([shown, shown], tmp_path / "predictions.png")
    drawn = [tmp_path / "batch.png", files[0], files[2], tmp_path / "predictions.png"]
    for file in drawn:
        with Image.open(file) as picture:
            assert min(picture.size) > 200


def run_config():
    """A few updates on few small scenes, validated on images of two sizes."""
    config = default_config()
    config.task = "segmentation"
    config.batch_size = 8
    config.model.name = "mambaout_femto"
    config.model.drop_path = 0.0
    with config.model.options.unlocked():
        config.model.options.update(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
        config.model.options.update(channels=8, auxiliary_channels=8)
    config.data.source = "scenes"
    config.data.image_size = 32
    config.data.num_threads = 1
    config.segmentation.photometric = False
    config.optimizer.learning_rate = 1e-2
    config.schedule.total_steps = 12
    config.schedule.warmup_steps = 2
    config.evaluation.batch_size = 16  # divides neither the 75 landscapes nor the 25 portraits
    config.evaluation.every_steps = 12
    config.checkpoint.every_steps = 12
    config.log.every_steps = 3
    return config


@pytest.mark.slow
def test_run_is_trained_evaluated_and_predicted_with(tmp_path):
    config, workdir = run_config(), tmp_path / "run"
    final = train(config, workdir)
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.2
    for line in lines:
        parts = line["train/main_loss"] + 0.4 * line["train/auxiliary_loss"]
        assert line["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert evaluate(config, workdir) == {"step": 12, **metrics_of(final)}

    assessment = assess(workdir, assessment_config(workdir))
    assert assessment.metrics["count"] == 100
    assert assessment.metrics["miou"] == pytest.approx(final["eval/miou"], rel=1e-6)
    source = Scenes("validation", "segmentation", 32)
    pixels = sum(source[i]["labels"].size for i in range(100))
    assert assessment.partial["confusion"].sum() == pixels  # each once
    files = assessment.draw(tmp_path / "figures")
    assert all(file.stat().st_size for file in files)

    Image.fromarray(source[0]["image"]).save(tmp_path / "scene.png")
    predictor = make_predictor(workdir)
    (prediction,) = predict_files(predictor, [tmp_path / "scene.png"])
    assert prediction.image.shape == source[0]["image"].shape
    assert {finding["name"] for finding in prediction.findings} <= {"other", *"0123456789"}
    assert sum(f["share"] for f in prediction.findings) == pytest.approx(1, abs=0.2)
    predictor.task.draw_predictions([prediction], tmp_path / "predictions.png")


def metrics_of(final):
    return {name: pytest.approx(final[name]) for name in final if name.startswith("eval/")}
