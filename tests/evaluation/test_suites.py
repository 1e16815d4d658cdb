# SPDX-License-Identifier: Apache-2.0
"""ImageNet's test sets from small copies: every metric against numpy on `predict`'s probabilities,
each image once on any number of devices, and what a copy that is not as it should be says."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from support.together import together

from mambaout_jax.cli.main import main
from mambaout_jax.config_file import read_config
from mambaout_jax.data.sets.suites import CORRUPTIONS, SUITES, find_suites
from mambaout_jax.evaluation import suites
from mambaout_jax.evaluation.suites import (
    ALEXNET_ERRORS,
    evaluate_suites,
    suite_config,
)
from mambaout_jax.imagenet_classes import SYNSETS
from mambaout_jax.models import create_model
from mambaout_jax.tasks.classification import predict
from mambaout_jax.weights.load import save_variables

SIDE = 16  # of the model's images
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
SMALL = f"""
from mambaout_jax.config import default_config
def get_config():
    config = default_config()
    config.data.image_size, config.data.num_threads = {SIDE}, 1
    config.evaluation.batch_size = 8
    with config.model.options.unlocked():
        config.model.options.depths, config.model.options.dims = (1, 1), (16, 32)
    return config
"""
CLASSES = (1, 2, 10, 11, 100, 999)  # as strings they sort otherwise


@pytest.fixture(scope="module")
def images():
    """Endless crops of a photograph, SIDE or more pixels a side."""
    photo, rng = load_sample_image("china.jpg"), np.random.default_rng(1)

    def crops():
        while True:
            height, width = rng.integers(SIDE, 3 * SIDE, 2)
            top, left = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
            yield Image.fromarray(photo[top : top + height, left : left + width])

    return crops()


def write(folder, images, count):
    folder.mkdir(parents=True)
    for number in range(count):
        next(images).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory, images):
    """All seven suites, 5 to 13 images each: no multiple of any number of devices."""
    root = tmp_path_factory.mktemp("suites")
    number = iter((7, 3, 1, 9, 2, 6, 4, 8, 5, 10, 11, 12, 13))
    for label in CLASSES:
        synset = SYNSETS[label]
        folder = root / "imagenet" / "val" / synset
        folder.mkdir(parents=True)
        for _ in range(1 + (label > 9) + (label > 99)):
            next(images).save(folder / f"ILSVRC2012_val_{next(number):08d}.png")
        write(root / "imagenet-v2" / str(label), images, 1 + label % 2)
        write(root / "imagenet-sketch" / synset, images, 1)
        if label > 5:
            write(root / "imagenet-a" / synset, images, 2)
            write(root / "imagenet-r" / synset, images, 1 + label % 3)
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            for label in (2, 10):
                folder = root / "imagenet-c" / corruption / str(severity) / SYNSETS[label]
                write(folder, images, 1)
    answers = [[], [2, 3], [10], [999, 1, 5], [100, 2], [], [3], [11], [1], [10, 2], [5], [0], [7]]
    (root / "real.json").write_text(json.dumps(answers))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a model that favours the classes of the suites, and the model."""
    model = create_model("mambaout_micro", 1000, depths=(1, 1), dims=(16, 32))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    variables = jax.tree.map(np.array, variables)
    rng, layer = np.random.default_rng(0), variables["params"]["head"]["classifier"]
    layer["kernel"] = 0.1 * rng.standard_normal(layer["kernel"].shape, np.float32)
    layer["bias"][:] = -3
    layer["bias"][[*CLASSES, 0, 3, 5, 7, 20, 30]] = 0.5
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_variables(variables, file, {"model": "mambaout_micro"})
    file.with_name("small.py").write_text(SMALL)
    return file, model, variables


def small(file, *overrides):
    """The config of the command line for these weights, which are of a smaller model."""
    config = read_config(str(file.with_name("small.py")))
    return suite_config(file, overrides, config)


@pytest.fixture(scope="module")
def results(root, weights):
    config = small(weights[0])
    return {row.name: row for row in evaluate_suites(weights[0], config, root)}


@pytest.fixture(scope="module")
def run(weights):
    _, model, variables = weights
    return jax.jit(lambda images: predict(model, variables, images))


def probabilities(run, files):
    """`predict` on files prepared here: shorter side to SIDE, central crop."""
    rows = []
    for file in files:
        image = Image.open(file)
        scale = SIDE / min(image.size)
        size = [int(side * scale) if side > min(image.size) else SIDE for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - SIDE) / 2) for side in size)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float64)
        rows.append((pixels / 255 - MEAN) / STD)
    inputs = np.stack(rows).astype(np.float32)
    padding = np.zeros((-len(inputs) % 16, *inputs.shape[1:]), np.float32)
    return np.asarray(run(np.concatenate([inputs, padding])), np.float64)[: len(inputs)]


def expected(run, folder, label_of, classes=range(1000)):
    """Top-1, top-5 and loss in float64, among `classes`."""
    files = sorted(folder.glob("*/*.png"))
    rows = probabilities(run, files)[:, list(classes)]
    rows /= rows.sum(1, keepdims=True)
    own = [list(classes).index(label_of(file.parent.name)) for file in files]
    order = np.argsort(-rows, axis=1)
    return {
        "top1": 100 * np.mean(order[:, 0] == own),
        "top5": 100 * np.mean((order[:, :5] == np.array(own)[:, None]).any(1)),
        "loss": -np.mean(np.log(rows[np.arange(len(own)), own])),
    }, len(files)


@pytest.mark.parametrize("name", ["val", "v2", "a", "r", "sketch"])
def test_suite_gives_the_metrics_of_numpy_on_the_probabilities(root, results, run, name):
    folder = root / ("imagenet/val" if name == "val" else f"imagenet-{name}")
    label_of = int if name == "v2" else SYNSETS.index
    competing = CLASSES[2:] if name in ("a", "r") else range(1000)
    metrics, count = expected(run, folder, label_of, competing)
    assert results[name].count == count
    assert results[name].metrics == pytest.approx(metrics, rel=1e-5)
    if name in ("a", "r"):  # which another set of competitors would not give
        free, _ = expected(run, folder, label_of)
        assert metrics["loss"] < free["loss"] - 0.5


def test_real_counts_a_hit_on_any_label_and_no_image_without(root, results, run):
    answers = json.loads((root / "real.json").read_text())
    files = sorted((root / "imagenet" / "val").glob("*/*.png"))
    sets = [answers[int(file.stem.removeprefix("ILSVRC2012_val_")) - 1] for file in files]
    order = np.argsort(-probabilities(run, files), axis=1)
    hits = {
        f"top{k}": [bool({*row[:k]} & {*labels}) for row, labels in zip(order, sets, strict=True)
                    if labels] for k in (1, 5)
    }  # fmt: skip
    assert results["real"].count == len(hits["top1"]) == sum(map(bool, sets)) < len(files)
    assert results["real"].metrics == pytest.approx(
        {name: 100 * np.mean(values) for name, values in hits.items()}
    )


def test_mce_is_the_mean_of_errors_over_those_of_alexnet(root, results, run):
    ratios = []
    for corruption, alexnet in ALEXNET_ERRORS.items():
        row, errors = results[f"c/{corruption}"], []
        for severity in range(1, 6):
            folder = root / "imagenet-c" / corruption / str(severity)
            metrics, _ = expected(run, folder, SYNSETS.index)
            errors.append(100 - metrics["top1"])
            assert row.metrics[f"error/{severity}"] == pytest.approx(errors[-1])
        assert row.count == 10
        assert row.metrics["error"] == pytest.approx(np.mean(errors))
        ratios.append(100 * np.mean(errors) / alexnet)
        assert row.metrics["ce"] == pytest.approx(ratios[-1])
    assert results["c"].count == 150
    assert results["c"].metrics == {"mce": pytest.approx(np.mean(ratios))}
    assert len({round(ratio, 6) for ratio in ratios}) > 5


def test_copies_that_are_not_the_published_ones_say_so(results):
    assert results["a"].notes == ("4 classes, published are 200", "8 images, published are 7,500")
    assert results["v2"].notes == (
        "6 classes, published are 1,000",
        "9 images, published are 10,000",
    )
    assert results["real"].notes == (
        "12 images, published are 50,000",
        "real.json has 13 lists, not 50,000",
    )
    assert "severity 1: 2 images, published are 50,000" in results["c/fog"].notes


@pytest.mark.slow
def test_devices_and_batches_change_nothing(root, weights, results, tmp_path):
    # `results` are of 8 devices.
    for devices, batch in (("1", "5"), ("4", "4")):
        out = tmp_path / f"{devices}.json"
        command = ["evaluate", "--weights", str(weights[0]), "--suite", str(root),
                   "--config", str(weights[0].with_name("small.py")),
                   f"--config.evaluation.batch_size={batch}", "--json", str(out),
                   "--suites=val,real,a"]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "mambaout_jax", *command],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": devices},
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
        written = json.loads(out.read_text())
        assert written["devices"].startswith(f"{devices} x ")
        for name in ("val", "real", "a"):
            row = written["suites"][name]
            assert row.pop("count") == results[name].count
            metrics = {key: row[key] for key in results[name].metrics}
            assert metrics == pytest.approx(results[name].metrics, rel=1e-5), (devices, name)


@pytest.mark.slow
def test_processes_change_nothing(root, weights, results, tmp_path):
    out = tmp_path / "out.json"

    def command(address, count, index):
        return ["-m", "mambaout_jax", "evaluate", "--weights", str(weights[0]), "--suite",
                str(root), "--config", str(weights[0].with_name("small.py")), "--json", str(out),
                "--suites=val,real,a", f"--distributed={address},{count},{index}"]  # fmt: skip

    with together(command, 2, devices=1) as processes:
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    written = json.loads(out.read_text())
    assert written["devices"].startswith("2 x ")
    for name in ("val", "real", "a"):
        row = written["suites"][name]
        assert row["count"] == results[name].count
        metrics = {key: row[key] for key in results[name].metrics}
        assert metrics == pytest.approx(results[name].metrics, rel=1e-5), name
    said = [
        [line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in outputs
    ]
    assert [line.split()[0] for line in said[0][1:]] == ["val", "real", "a"]  # after the settings
    assert said[1] == []


def test_absent_suites_are_told_with_what_would_make_them(root, weights, tmp_path, capsys):
    shutil.copytree(root / "imagenet-a", tmp_path / "imagenet-a")
    out = tmp_path / "out.json"
    command = ["evaluate", "--weights", str(weights[0]), "--suite", str(tmp_path)]
    assert (
        main([*command, "--config", str(weights[0].with_name("small.py")), "--json", str(out)]) == 0
    )
    written = json.loads(out.read_text())["suites"]
    assert list(written) == list(SUITES)
    assert [name for name in SUITES if written[name]["count"]] == ["a"]
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert (
        f"absent: {tmp_path / 'imagenet-v2'} is not there; it is made from imagenetv2-"
        in (lines["v2"])
    )
    for name in set(SUITES) - {"a"}:
        assert written[name]["notes"][0] in lines[name]
        assert "top-1" not in lines[name]
    assert main([*command, "--config", str(weights[0].with_name("small.py")), "--suites=r,c"]) == 2
    assert "holds none of r, c: " in capsys.readouterr().err


def test_partial_corruptions_have_no_mce(root, weights, tmp_path):
    for corruption, severities in {"fog": (1, 2, 3, 4, 5), "snow": (2, 4)}.items():
        for severity in severities:
            place = Path("imagenet-c") / corruption / str(severity)
            shutil.copytree(root / place, tmp_path / place)
    config = small(weights[0])
    rows = {row.name: row for row in evaluate_suites(weights[0], config, tmp_path, ["c"])}
    assert list(rows) == ["c/snow", "c/fog", "c"]
    assert set(rows["c/snow"].metrics) == {"error", "error/2", "error/4"}
    assert rows["c/snow"].notes[-1] == "no ce without severity 1, 3, 5"
    assert rows["c/fog"].metrics["ce"] > 0
    assert rows["c"].metrics == {}
    (note,) = rows["c"].notes
    assert note.startswith("no mCE: it needs five severities of all corruptions; not of gaussian_")
    assert "snow" in note
    assert "fog" not in note


@pytest.mark.slow
def test_corrupted_images_are_not_cropped_again(root, weights):
    config = small(weights[0], "--config.data.crop_fraction=0.5")
    rows = {row.name: row for row in evaluate_suites(weights[0], config, root, ["val", "c"])}
    whole = small(weights[0])
    for row in evaluate_suites(weights[0], whole, root, ["val", "c"]):
        if row.name == "val":
            assert rows["val"].metrics["loss"] != pytest.approx(row.metrics["loss"], rel=1e-3)
        else:
            assert rows[row.name] == row


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (lambda root: (root / "imagenet-a" / "tench").mkdir(), "a", "not synsets .*'tench'"),
        (lambda root: (root / "imagenet-v2" / "1000").mkdir(), "v2", "folder '1000'; .* 0 to 999"),
        (lambda root: (root / "imagenet-v2" / "n01").mkdir(), "v2", "folder 'n01'"),
        (lambda root: (root / "real.json").write_text("[1, 2]"), "real", "not a list of lists"),
        (lambda root: (root / "real.json").write_text("[[1], [1000]]"), "real", "0 to 999"),
        (lambda root: (root / "real.json").write_text("[[1]]"), "real", "label .* for 1 only"),
        (lambda root: (root / "imagenet-r" / SYNSETS[10] / "0.png").write_bytes(b"GIF"), "r",
         "cannot read .*0.png"),
    ],
)  # fmt: skip
def test_unreadable_suite_is_an_error(root, weights, tmp_path, make, name, words):
    copy = shutil.copytree(root, tmp_path / "copy", ignore=lambda *_: ["imagenet-c"])
    make(copy)
    config = small(weights[0])
    with pytest.raises(ValueError, match=words):
        list(evaluate_suites(weights[0], config, copy, [name]))


def test_real_needs_the_numbers_of_the_images(root, weights, tmp_path):
    shutil.copytree(root / "imagenet-a", tmp_path / "val")
    shutil.copy(root / "real.json", tmp_path)
    with pytest.raises(ValueError, match=r"has no number; ReaL's labels are for ILSVRC2012_val_"):
        list(evaluate_suites(weights[0], small(weights[0]), tmp_path, ["real"]))


def test_corruptions_beyond_the_fifteen_are_told(root, tmp_path, caplog):
    (tmp_path / "imagenet-c" / "spatter" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds \['spatter'\] and none of the corruptions"):
        find_suites(tmp_path, ["c"])
    (tmp_path / "imagenet-c" / "fog" / "3").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        present, _ = find_suites(tmp_path, ["c"])
    assert list(present) == ["c/fog/3"]
    assert "left out: ['spatter']" in caplog.text


def test_imagenet_itself_may_be_the_folder(root, tmp_path, weights, results):
    shutil.copytree(root / "imagenet" / "val", tmp_path / "val")
    config = small(weights[0])
    (row,) = evaluate_suites(weights[0], config, tmp_path, ["val"])
    assert row.metrics == pytest.approx(results["val"].metrics, rel=1e-6)


def test_wrong_requests_are_one_line(root, weights, tmp_path, capsys):
    def error(*arguments):
        small_model = ("--config", str(weights[0].with_name("small.py")))
        command = ["evaluate", "--weights", str(weights[0]), *arguments, *small_model]
        assert main(command) == 2
        return capsys.readouterr().err

    assert "there is no suite 'x'; there are val, real" in error("--suite", str(root), "--suites=x")
    assert f"{root}x is not a folder" in error("--suite", f"{root}x")
    with pytest.raises(SystemExit):
        main(["evaluate", "--weights", str(weights[0]), "--suites=val", "--data", str(root)])
    assert "--suites and --json go with --suite" in capsys.readouterr().err


def test_other_classes_are_refused(root, weights, tmp_path):
    _, _, variables = weights
    head = variables["params"]["head"]
    fewer = {name: leaf[..., :10] for name, leaf in head["classifier"].items()}
    other = {"params": {**variables["params"], "head": {**head, "classifier": fewer}}}
    file = tmp_path / "ten.safetensors"
    save_variables(other, file, {"model": "mambaout_micro"})
    with pytest.raises(ValueError, match=r"ten.safetensors has 10 classes; the suites need the 1,"):
        next(evaluate_suites(file, small(weights[0]), root))
    with pytest.raises(ValueError, match="classes that are not ImageNet-1k's in their order"):
        suites._check_classes("runs/own", 1000, tuple(f"class {i}" for i in range(1000)))
    suites._check_classes("runs/own", 1000, SYNSETS)


def test_prepared_imagenet_has_the_same_labels(root, images, tmp_path):
    for number, label in enumerate((10, 2, 10, 1, 999, 2), start=1):
        folder = tmp_path / "folders" / "imagenet" / "val" / SYNSETS[label]
        folder.mkdir(parents=True, exist_ok=True)
        next(images).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    out = tmp_path / "prepared" / "imagenet"
    folders = str(tmp_path / "folders" / "imagenet")
    command = ["prepare", "imagenet", "--folder", folders, "--out", str(out), "--partial"]
    assert main([*command, "--processes=1"]) == 0
    pairs = []
    for place in ("folders", "prepared"):
        shutil.copy(root / "real.json", tmp_path / place)
        present, _ = find_suites(tmp_path / place, ["val", "real"])
        val, real = present["val"]().source, present["real"]().source
        pairs.append(sorted((real[i]["label"], val[i]["label"]) for i in range(len(val))))
    assert pairs[0] == pairs[1] == [(0, 10), (1, 2), (2, 10), (3, 1), (4, 999), (5, 2)]
