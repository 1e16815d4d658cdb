# SPDX-License-Identifier: Apache-2.0
"""The ImageNet recipe from end to end: three epochs by the command line on every kind of data.

Only sizes differ from the recipe, that of the model among them: its warm-up, cosine and cool-down
last an epoch each, a device still holds one mixing group per micro-batch, and the batch still has
the whole learning rate.

What has to be equal to the bit: class folders and what TensorFlow Datasets writes of them in the
same order. `mambaout prepare` has an order of its own and compresses two of the images again, so
its parameters are others, and one checkpoint is evaluated on all three instead.
"""

import functools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import miniature_imagenet
from support.places import ROOT
from support.runs import final_state, signal_after, timeless_metrics
from support.tfds_imagenet import write_with_tfds

from mambaout_jax.cli.main import main
from mambaout_jax.config_file import changed_settings, load_config, override, read_config
from mambaout_jax.evaluation.evaluator import evaluate, format_metrics
from mambaout_jax.imagenet_classes import SYNSETS
from mambaout_jax.models import create_model
from mambaout_jax.runtime.checkpoint import read_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.optimised]

RECIPE = f"{ROOT / 'experiments' / 'imagenet' / 'mambaout.py'}:mambaout_femto"
ROUTES = ("folders", "prepared", "tfds")
TRAINING, VALIDATION = 4 * 49, 4 * 3  # images
UPDATES = 6  # per epoch, of 32 images; the other four open the next epoch
SIZES = {
    "model.name": "test_mambaout",
    "data.image_size": 32,
    "batch_size": 32,
    "augment.mix_group_size": 4,  # 32 / 2 devices / 4 micro-batches
    "optimizer.learning_rate_batch_size": 32,
    "evaluation.batch_size": 8,  # does not divide the images
    "schedule.total_epochs": 2.0,
    "schedule.warmup_epochs": 1.0,
    "schedule.cooldown_epochs": 1.0,
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
}


def train_arguments(path, *others):
    settings = [f"--config.{name}={value}" for name, value in SIZES.items()]
    return ["train", "--config", RECIPE, f"--config.data.path={path}", *settings, *others]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "mambaout_jax", *map(str, arguments)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process, code=0):
    """Waits for the process, which must end with this code, and returns what it printed."""
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()  # what has ended stays ended
    assert process.returncode == code, err
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where each route finds the same images; of prepared data, what the command itself says."""
    folder = tmp_path_factory.mktemp("imagenet")
    miniature = miniature_imagenet.build(folder, images_per_class=TRAINING // 4, validation=3)
    said = output(
        start(
            *("prepare", "imagenet", "--partial", "--out", folder / "prepared"),
            *("--train-tar", miniature.train_tar, "--val-tar", miniature.val_tar),
        )
    )
    return {
        "folders": miniature.folders,
        "prepared": Path(said.rsplit("--config.data.path=", 1)[1].strip()),
        "tfds": write_with_tfds(miniature.folders, folder / "tfds", in_order=True),
    }


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Route -> workdir of an uninterrupted run."""

    @functools.cache
    def trained(route):
        workdir = tmp_path_factory.mktemp(route) / "run"
        output(start(*train_arguments(data[route], "--workdir", workdir)))
        return workdir

    return trained


def validation_losses(folders, params):
    """Cross-entropy of each validation image, prepared by Pillow alone."""
    images, labels = [], []
    for path in sorted((folders / "val").glob("*/*")):
        with Image.open(path) as image:
            assert image.size == (100, 75)
            view = image.resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
        images.append((np.asarray(view) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
        labels.append(SYNSETS.index(path.parent.name))
    model = create_model(SIZES["model.name"], num_classes=1000)
    images = np.array(images, np.float32)
    logits = np.asarray(model.apply({"params": params}, images, train=False), np.float64)
    scores = logits[np.arange(len(labels)), labels]
    top = logits.max(axis=-1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=-1)) - scores, scores == top


# Before training


@pytest.mark.slow
def test_dry_run_tells_the_three_epochs(data, capsys):
    assert main(train_arguments(data["prepared"], "--dry-run")) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.strip().split("\n"))
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["model"] == "test_mambaout, 1000 classes, float32"
    assert rows["data"] == "imagenet: 196 training, 12 validation examples"
    assert rows["effective batch"] == "32 = 8 devices x 1 examples x 4 micro-batches"
    assert rows["updates"] == "18 = 3 epochs x 6, warm-up 6"
    assert rows["learning rate"] == (
        "0.004 peak (0.004 at batch 32), warm-up from 1e-06, cosine to 1e-05"
    )


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_first_batch_is_drawn(data, tmp_path, capsys, route):
    sheet = tmp_path / "sheet.png"
    assert main(train_arguments(data[route], "--show-batch", str(sheet))) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    with Image.open(sheet) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).std(axis=0)
    assert colours.min() > 10  # photographs, not an empty sheet


def test_missing_data_are_answered_with_their_preparation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(train_arguments("")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.source='imagenet' needs the folder: set --config.data.p")
    assert "what `mambaout prepare` wrote" in error
    assert main(train_arguments(tmp_path / "none")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: data.path={tmp_path / 'none'} does not exist; ")
    assert (
        "mambaout prepare imagenet --train-tar ILSVRC2012_img_train.tar "
        f"--val-tar ILSVRC2012_img_val.tar --out {tmp_path / 'none'}\n"
    ) in error
    assert list(tmp_path.iterdir()) == []


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_three_epochs_of_the_recipe_on_every_route(data, trained, route):
    workdir, total = trained(route), 3 * UPDATES
    changed = changed_settings(read_config(RECIPE), load_config(workdir / "config.json"))
    assert {name: new for name, (_, new) in changed.items()} == {
        **SIZES,
        "data.path": str(data[route]),
    }
    lines = timeless_metrics(workdir)
    updates = [line for line in lines if "train/loss" in line]
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in updates] == list(range(1, total + 1))
    assert [line["step"] for line in evaluations] == [UPDATES, 2 * UPDATES, total]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {line["train/replaced_examples"] for line in updates} == {0}

    half_way = 1e-5 + (4e-3 - 1e-5) * (1 + math.cos(math.pi / 2)) / 2
    np.testing.assert_allclose(
        [line["train/learning_rate"] for line in updates],
        np.repeat([1e-6, half_way, 1e-5], UPDATES),  # one rate per epoch
        rtol=2e-6,
    )
    assert evaluations[-1]["eval/loss"] < 0.9 * evaluations[0]["eval/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_evaluation_counts_every_image_once(data, trained, route):
    workdir = trained(route)
    params = read_checkpoint(workdir / "checkpoints").state["params"]
    losses, hits = validation_losses(data["folders"], params)
    assert len(losses) == VALIDATION
    # An image that is left out, or counts twice, moves the mean by more than is tolerated.
    assert abs(losses - losses.mean()).min() / VALIDATION > 2e-6 * losses.mean()
    last = timeless_metrics(workdir)[-1]
    assert last["eval/loss"] == pytest.approx(losses.mean(), rel=2e-6)
    assert last["eval/top1"] == pytest.approx(100 * hits.mean())


@pytest.mark.slow
def test_folders_and_tensorflow_datasets_train_to_the_same_bits(trained):
    assert final_state(trained("tfds")) == final_state(trained("folders"))
    assert timeless_metrics(trained("tfds")) == timeless_metrics(trained("folders"))


@pytest.mark.slow
def test_one_checkpoint_is_evaluated_alike_on_every_route(data, trained, capsys):
    workdir = trained("prepared")
    config = load_config(workdir / "config.json")
    want = {"step": 3 * UPDATES, **timeless_metrics(workdir)[-1]}
    for route in ROUTES:
        there = f"--config.data.path={data[route]}"
        found = evaluate(override(config, [there]), workdir)
        assert found == pytest.approx(want, rel=1e-5)
        assert main(["evaluate", "--workdir", str(workdir), there]) == 0
        assert capsys.readouterr().out == f"{format_metrics(found)}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "number", "code", "step"),
    [
        ("folders", signal.SIGTERM, 75, UPDATES // 2),  # in the warm-up
        ("prepared", signal.SIGKILL, -signal.SIGKILL, 3 * UPDATES // 2),  # amid the second epoch
    ],
)
def test_interrupted_run_ends_as_if_nothing_had_happened(
    data, trained, tmp_path, route, number, code, step
):
    workdir = tmp_path / "run"
    command = train_arguments(data[route], "--workdir", workdir)
    process = start(*command)
    signal_after(process, workdir, step, number)
    output(process, code)
    newest = read_checkpoint(workdir / "checkpoints").step
    assert step <= newest < 3 * UPDATES
    said = output(start(*command))
    assert f"resuming from {workdir / 'checkpoints' / str(newest)}\n" in said
    assert final_state(workdir) == final_state(trained(route))
    assert timeless_metrics(workdir) == timeless_metrics(trained(route))
