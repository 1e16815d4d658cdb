# SPDX-License-Identifier: Apache-2.0
"""The task of detection: what is prepared and predicted, and whole runs on scenes."""

import copy
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.perfect_detections import perfect
from support.runs import final_state, rewind, timeless_metrics

from mambaout_jax.config import default_config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets import scenes
from mambaout_jax.evaluation.evaluator import evaluate
from mambaout_jax.metrics.coco import decode_mask
from mambaout_jax.runtime.mesh import make_mesh, put_batch, replicated
from mambaout_jax.tasks.coco_results import worst_images
from mambaout_jax.tasks.detection import Detection
from mambaout_jax.tasks.task import Prediction
from mambaout_jax.train.loop import train
from mambaout_jax.train.preview import show_batch
from mambaout_jax.train.writer import read_metrics

NAMES = tuple("0123456789")


def scenes_config():
    """A detector that is trained in seconds, and learns nothing in them."""
    config = default_config()
    config.task = "detection"
    config.batch_size = 8
    config.model.name = "mambaout_micro"
    with config.model.options.unlocked():
        options = {"dims": (8, 16, 16, 16), "channels": 16, "box_hidden": 32, "proposals": 40}
        config.model.options.update(options, detections=12)
    config.data.source = "scenes"
    config.data.image_size = 64
    config.data.num_threads = 1
    config.detection.long_side = 80
    config.detection.max_instances = 8
    config.detection.sampled_regions = 16
    config.schedule.total_steps = 6
    config.schedule.warmup_steps = 1
    config.evaluation.batch_size = 8
    config.evaluation.every_steps = 6
    config.checkpoint.every_steps = 3
    config.log.every_steps = 2
    return config


TASK = Detection(scenes_config(), NAMES)


def test_random_draws_belong_to_a_place_in_the_global_batch():
    batch = {"image": jnp.zeros((4, 32, 32, 3), jnp.uint8), "position": jnp.asarray([5, 2, 7, 0])}
    keys = TASK.prepare(batch, jax.random.key(1))["key"]
    alone = {"image": batch["image"][2:3], "position": batch["position"][2:3]}
    key = TASK.prepare(alone, jax.random.key(1))["key"]
    assert (jax.random.key_data(keys)[2:3] == jax.random.key_data(key)).all()
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 4


def output():
    """What a detector says of one image: an 8, a sure 1, and nothing."""
    masks = np.zeros((3, 28, 28), np.float32)
    masks[:2, :, :14] = 1  # the left half
    return {
        "boxes": np.float32([[10, 20, 50, 40], [0, 0, 8, 8], [0, 0, 0, 0]]),
        "scores": np.float32([0.8, 0.6, 0]),
        "labels": np.int32([8, 1, -1]),
        "masks": masks,
        "size": np.int32([48, 64]),
    }


def test_findings_are_objects_in_pixels_of_what_was_seen():
    findings = TASK.findings(output(), 5)
    assert json.loads(json.dumps(findings)) == list(findings)
    assert [row["name"] for row in findings] == ["8", "1"]
    assert findings[0]["box"] == [10, 20, 50, 40]
    expected = np.zeros((48, 64), bool)
    expected[20:40, 10:30] = True
    np.testing.assert_array_equal(decode_mask(findings[0]["mask"]), expected)
    assert len(TASK.findings(output(), 1)) == 1


def test_predictions_are_drawn_from_one_half_on(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    pictures = []
    for count in (0, 1, 2):
        found = TASK.findings(output(), 2)[:count]
        path = tmp_path / f"{count}.png"
        TASK.draw_predictions([Prediction(tmp_path / "a.jpg", image, found)], path)
        pictures.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    shape = pictures[0].shape
    assert all(picture.shape == shape for picture in pictures)
    changed = [(a != b).any(-1).sum() for a, b in itertools.pairwise(pictures)]
    assert min(changed) > 500


def test_metrics_need_a_set_of_the_same_classes():
    with pytest.raises(ValueError, match=r"use task\.measured_on\(source\)"):
        TASK.metrics({})
    source = scenes.Scenes("validation", "detection", 64)
    assert TASK.measured_on(source).measured is source
    assert TASK.aligned(source) is source
    with pytest.raises(ValueError, match="the weights' classes are not those of the data"):
        Detection(scenes_config(), NAMES[:9]).aligned(source)


def found_nothing(count):
    """The partial result of a set in which a detector saw nothing."""
    shapes = {"label": (0,), "index": (0,), "image_id": (0,), "score": (0,), "box": (0, 4)}
    partial = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    partial["box"] = partial["box"].astype(float)
    return partial | {"mask": np.zeros((0, 28, 28), np.uint8), "seen": np.arange(count)}


def test_a_detector_that_finds_nothing_has_a_precision_of_0():
    source = scenes.Scenes("validation", "detection", 64)
    metrics = TASK.measured_on(source).metrics(found_nothing(len(source)))
    assert metrics["box_ap"] == metrics["mask_ap"] == 0
    assert set(metrics.values()) == {0}
    assert worst_images(found_nothing(len(source)), source, 2)[0].wrong == 0


def test_a_set_without_objects_has_no_average_precision(monkeypatch):
    source = scenes.Scenes("validation", "detection", 64)
    nothing = source.ground_truth() | {"annotations": []}
    monkeypatch.setattr(source, "ground_truth", lambda: nothing)
    with pytest.raises(ValueError, match=r"the set has no objects \(crowds do not count\)"):
        TASK.measured_on(source).metrics(found_nothing(len(source)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, and a small validation set for it and what comes after."""
    workdir = tmp_path_factory.mktemp("detection") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenes.COUNTS, "validation", 13)  # which batches of 8 do not fill
        yield workdir, train(scenes_config(), workdir)


@pytest.mark.slow
def test_a_run_reports_five_losses_and_both_precisions(run):
    workdir, metrics = run
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    names = ("rpn_class", "rpn_box", "class", "box", "mask")
    for line in lines:
        total = sum(line[f"train/{name}"] for name in names)
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert 0 <= metrics["eval/box_ap"] <= 100
    assert 0 <= metrics["eval/mask_ap"] <= 100
    assert "eval/box_ap_large" not in metrics, "no object has 96 pixels a side"
    assert evaluate(scenes_config(), workdir) == metrics


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(run, tmp_path):
    workdir = rewind(run[0], tmp_path / "run", 3)
    assert train(scenes_config(), workdir) == run[1]
    assert final_state(workdir) == final_state(run[0])
    assert timeless_metrics(workdir) == timeless_metrics(run[0])


@pytest.mark.slow
def test_losses_and_gradients_are_the_same_on_any_number_of_devices():
    config = scenes_config()
    source = scenes.Scenes("train", "detection", 64)
    task = Detection.from_config(config, source)
    model = task.build(config.model.name, **dict(config.model.options), image_size=64)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    with train_batches(config, source, task.training_view(), groups=task.groups(source)) as batches:
        batch = dict(next(batches))
    del batch["replaced"]
    batch["position"] = np.arange(8, dtype=np.int32)

    def loss(params, batch):
        prepared = task.prepare(batch, jax.random.key(1))
        return task.loss(model, params, {}, prepared, jax.random.key(2))

    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(1, devices)
        step = jax.jit(jax.grad(loss, has_aux=True), out_shardings=replicated(mesh))
        params = jax.device_put(variables["params"], replicated(mesh))
        results.append(jax.device_get(step(params, put_batch(batch, mesh))))
    (one, (_, sums)), (eight, (_, sums_of_eight)) = results
    assert sums["mask"] > 0
    for name, value in sums.items():
        assert sums_of_eight[name] == pytest.approx(value, rel=1e-4), name
    for a, b in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max())


@pytest.mark.slow
def test_figures_of_an_evaluation_and_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(scenes.COUNTS, "validation", 8)
    source = scenes.Scenes("validation", "detection", 64)
    partial = TASK.merge([perfect(source, list(range(8)))])
    assert TASK.measured_on(source).metrics(partial)["box_ap"] == pytest.approx(100)
    few = copy.deepcopy(partial)
    few["score"][:] = 0.3
    files = TASK.draw_evaluation(few, source, tmp_path)
    assert tuple(file.name for file in files) == TASK.evaluation_files()
    assert all(file.stat().st_size > 200 for file in files)
    assert len((tmp_path / "per_class_ap.csv").read_text().splitlines()) == 11
    partial["score"][:] = 0.9
    assert len(TASK.draw_evaluation(partial, source, tmp_path)) == 3
    assert not (tmp_path / "worst_images.png").exists()
    show_batch(scenes_config(), tmp_path / "batch.png")
    assert np.asarray(Image.open(tmp_path / "batch.png")).std() > 5
