# SPDX-License-Identifier: Apache-2.0
"""ADE20K from folders and as prepared: the same images and labels, and what is said otherwise."""

import itertools
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import miniature_ade20k, shards_here

from mambaout_jax.config import default_config
from mambaout_jax.data.loader import evaluation_batches, train_batches
from mambaout_jax.data.prepare import ade20k as prepare
from mambaout_jax.data.sets.ade20k import (
    CLASS_NAMES,
    ADE20KFolders,
    PreparedADE20K,
    open_ade20k,
)
from mambaout_jax.data.sets.identity import identity
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.sets.sources import SegmentationImages, open_source
from mambaout_jax.data.views.segmentation import EvaluationView, TrainingView, groups

KINDS = ("folders", "prepared")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return miniature_ade20k.build(tmp_path_factory.getbasetemp() / "ade20k")


@pytest.fixture(scope="module")
def places(truth, tmp_path_factory):
    folders = tmp_path_factory.getbasetemp() / "ade20k"
    out = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_shards", shards_here.write_shards)
        prepare.prepare_ade20k(out, folder=folders, partial=True, shard_bytes=20_000)
    return {"folders": folders, "prepared": out}


def settings(path, size=32):
    config = default_config()
    config.task, config.data.source, config.data.path = "segmentation", "ade20k", str(path)
    config.data.image_size, config.segmentation.long_side = size, 4 * size
    config.data.num_threads = 2
    config.batch_size = config.evaluation.batch_size = 2
    return config


def reduced(ids):
    return np.where(ids == 0, 255, ids - 1)


def test_there_are_150_classes():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 150
    assert (CLASS_NAMES[0], CLASS_NAMES[2], CLASS_NAMES[12], CLASS_NAMES[149]) == (
        "wall", "sky", "person", "flag",
    )  # fmt: skip
    assert all(name == name.strip() != "" for name in CLASS_NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_examples_are_those_that_were_written(truth, places, kind, split):
    source = open_source(settings(places[kind]).data, split, task="segmentation")
    assert isinstance(source, ADE20KFolders if kind == "folders" else PreparedADE20K)
    assert isinstance(source, SegmentationImages)
    assert (source.num_classes, source.class_names) == (150, CLASS_NAMES)
    assert len(source) == len(truth[split])
    left = dict(truth[split])
    for index, size in enumerate(source.image_sizes):
        example = source[index]
        pixels = np.asarray(example["image"])
        (stem,) = [
            stem for stem, (want, _) in left.items() if want.shape == pixels.shape
            and (want == pixels).all()
        ]  # fmt: skip
        _, ids = left.pop(stem)
        np.testing.assert_array_equal(example["labels"], reduced(ids))
        assert example["labels"].dtype == np.uint8
        np.testing.assert_array_equal(size, ids.shape)
    assert source.image_sizes.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_sources_survive_pickling_and_read_greyscale(places, kind):
    source = open_ade20k(str(places[kind]), "train", channels=1)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 5
    for index in (0, 4):
        one, two = source[index], copy[index]
        assert one["image"].mode == "L"
        np.testing.assert_array_equal(np.asarray(one["image"]), np.asarray(two["image"]))
        np.testing.assert_array_equal(one["labels"], two["labels"])


def test_sets_have_an_identity(places):
    found = [identity(open_ade20k(str(places[kind]), split)) for kind in KINDS
             for split in ("train", "validation")]  # fmt: skip
    assert [x["examples"] for x in found] == [5, 3, 5, 3]
    assert len({x["fingerprint"] for x in found}) == 4
    assert all(tuple(x["classes"]) == CLASS_NAMES for x in found)
    assert identity(open_ade20k(str(places["prepared"]), "train")) == found[2]


def test_a_folder_in_between_is_part_of_the_identity(copy):
    before = open_ade20k(str(copy), "validation").fingerprint()
    for kind in ("images", "annotations"):
        folder = copy / kind / "validation"
        files = list(folder.iterdir())
        (folder / "deep").mkdir()
        for file in files:
            file.rename(folder / "deep" / file.name)
    after = open_ade20k(str(copy), "validation")
    assert len(after) == 3
    assert after.fingerprint() != before


def test_training_batches_are_the_same_from_both(places):
    found = []
    for kind in KINDS:
        config = settings(places[kind])
        source = open_source(config.data, "validation", task="segmentation")
        view = TrainingView(config)
        # Sorted names differ from the order of the shards: of each source its first example.
        rng = np.random.default_rng(3)
        by_labels = sorted((source[i] for i in range(3)), key=lambda one: one["labels"].tobytes())
        found.append(view(by_labels[0], rng))
        with train_batches(config, source, view) as batches:
            batch = next(batches)
        assert batch["image"].shape == (2, 32, 32, 3)
        assert batch["labels"].shape == (2, 32, 32)
        assert batch["image_shape"].shape == (2, 2)
        assert not batch["replaced"].any()
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_evaluation_batches_hold_one_size_each(places):
    config = settings(places["prepared"])
    source = open_source(config.data, "train", task="segmentation")
    numbers = groups(source.image_sizes)
    view = EvaluationView.of(config)
    seen, shapes = [], set()
    with evaluation_batches(config, source, view, groups=numbers) as batches:
        for batch in batches:
            seen += batch["index"][batch["mask"]].tolist()
            shapes.add((batch["image"].shape[1:3], batch["labels"].shape[1:]))
            assert not batch["labels"][~batch["mask"]].any()
    assert sorted(seen) == list(range(5))
    # 60 x 80, 80 x 60, 64 x 64, 70 x 90; short side 32
    assert shapes == {
        ((32, 43), (60, 80)), ((43, 32), (80, 60)), ((32, 32), (64, 64)), ((32, 41), (70, 90)),
    }  # fmt: skip


@pytest.mark.slow
def test_reading_imports_no_tensorflow(places):
    code = (
        "import sys; from mambaout_jax.data.sets.ade20k import open_ade20k; "
        f"source = open_ade20k({str(places['prepared'])!r}, 'train'); source[3]; "
        "print(sorted(set(sys.modules) & {'tensorflow', 'tensorflow_datasets', 'torch', 'jax'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


# What is said


@pytest.fixture
def copy(places, tmp_path):
    shutil.copytree(places["folders"], tmp_path / "copy")
    return tmp_path / "copy"


def labels_of(root, number=1):
    return root / "annotations" / "training" / f"ADE_train_{number:08}.png"


def test_labels_of_another_size_are_named(copy):
    labels_of(copy).write_bytes(labels_of(copy, 2).read_bytes())
    source = open_ade20k(str(copy), "train")
    with pytest.raises(
        ValueError,
        match=rf"^{labels_of(copy)} has 80 x 60 pixels .*/ADE_train_00000001\.jpg has 60 x 80",
    ):
        source[0]


def test_labels_with_numbers_beyond_the_classes_stop_a_run(copy):
    labels_of(copy).write_bytes(miniature_ade20k.png(np.full((60, 80), 151, np.uint8)))
    config = settings(copy)
    source = open_source(config.data, "train", task="segmentation")
    match = rf"{labels_of(copy)} holds 151, and labels are 0 \(other\), 1 to 150, or 255"
    with pytest.raises(ValueError, match=match):
        source[0]
    batches = train_batches(config, source, TrainingView(config))
    with batches, pytest.raises(ValueError, match=match):
        list(itertools.islice(batches, 3))


def test_files_that_cannot_be_read_are_named_and_replaced(copy, caplog):
    labels_of(copy).write_bytes(b"")
    image = copy / "images" / "training" / "ADE_train_00000002.jpg"
    image.write_bytes(image.read_bytes()[:-400])
    config = settings(copy)
    source = open_source(config.data, "train", task="segmentation")
    labels_of(copy, 3).unlink()  # after it was listed
    for index, words in (
        (0, rf"{labels_of(copy)}: a label file is a PNG, and this is empty"),
        (1, rf"{image}: .*truncated"),
        (2, rf"{labels_of(copy, 3)}: .*No such file"),
    ):
        with pytest.raises(UnreadableImageError, match=f"^cannot read {words}"):
            source[index]
    with train_batches(config, source, TrainingView(config)) as batches:
        replaced = np.concatenate([next(batches)["replaced"] for _ in range(5)])
    assert replaced.sum() >= 4
    assert "another image takes its place" in caplog.text


def test_damaged_records_are_named(places, tmp_path):
    shutil.copytree(places["prepared"], tmp_path / "copy")
    folder = tmp_path / "copy" / "ade20k" / "1.0.0"
    shard = folder / "ade20k-train.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    place = content.index(b"ADE_train")
    content[place + 200] ^= 1
    shard.write_bytes(content)
    source = open_ade20k(str(tmp_path / "copy"), "train")
    messages = {}
    for index in range(5):
        try:
            source[index]
        except UnreadableImageError as error:
            messages[index] = str(error)
    ((index, message),) = messages.items()
    assert f"cannot read record {index} of {folder}" in message


def test_shards_of_another_number_of_images_are_told(places, tmp_path):
    shutil.copytree(places["prepared"], tmp_path / "copy")
    manifest = tmp_path / "copy" / "ade20k" / "1.0.0" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["train"]["sizes"].pop()
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train shards of .* hold 5 images and man"):
        open_ade20k(str(tmp_path / "copy"), "train")


def test_another_number_of_images_is_logged(places, caplog):
    open_ade20k(str(places["folders"]), "validation")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the validation split of {places['folders']} has 3 images, not ADE20K's 2,000"
    )


def test_a_missing_set_is_answered_with_where_it_was_looked_for(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("none", "none does not exist"),
        ("file", "file is a file"),
        ("empty", "empty holds no ADE20K"),
    ):
        with pytest.raises(FileNotFoundError, match=words) as caught:
            open_ade20k(str(tmp_path / name), "train")
        caught.match(rf"looks for {tmp_path}/{name}/images/training/\*\.jpg, .*/annotations/trai")
        caught.match(r"mambaout prepare ade20k --zip ADEChallengeData2016\.zip --out DIR")


def test_an_unfinished_preparation_is_told(tmp_path):
    (tmp_path / "ade20k" / "1.0.0.incomplete").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"is not finished; run the command that began it"):
        open_ade20k(str(tmp_path), "train")


def test_an_empty_validation_set_is_told(copy):
    for path in (copy / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"label files in .* have no image|split is empty"):
        open_ade20k(str(copy), "validation")


def test_other_tasks_are_refused(places):
    config = settings(places["folders"])
    with pytest.raises(ValueError, match=r"'ade20k' has examples for segmentation, not for task="):
        open_source(config.data, "train", task="detection")


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(places):
    config = settings(places["prepared"])
    source = open_source(config.data, "train", task="segmentation")
    found = []
    for workers in (0, 2):
        config.data.num_workers = workers
        with train_batches(config, source, TrainingView(config)) as batches:
            found.append([next(batches) for _ in range(4)])
    for one, two in zip(*found, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
