# SPDX-License-Identifier: Apache-2.0
"""ImageNet from all three places: the same images and labels, and what is said where it is not."""

import hashlib
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from support import miniature_imagenet
from support.tfds_imagenet import FOLDERS, write_with_tfds

from mambaout_jax.config import default_config
from mambaout_jax.data.loader import evaluation_batches, train_batches
from mambaout_jax.data.prepare.imagenet import prepare_imagenet
from mambaout_jax.data.sets.identity import identity
from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.sets.imagenet import ImageNetFolders, PreparedImageNet, open_imagenet
from mambaout_jax.data.sets.sources import LabelledImages, open_source
from mambaout_jax.data.views.crops import EvaluationView, TrainingView
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS
from mambaout_jax.preprocessing import Preprocessing

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return miniature_imagenet.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def prepared(miniature, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    prepare_imagenet(
        out, train_tar=miniature.train_tar, val_tar=miniature.val_tar, partial=True, processes=2,
        shard_bytes=20_000,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def written_by_tfds(miniature, tmp_path_factory):
    """As TensorFlow Datasets itself prepares it: in shards, order and compression of its choice."""
    out = tmp_path_factory.mktemp("tfds")
    return write_with_tfds(miniature.folders, out)


def settings(path):
    config = default_config()
    config.data.source, config.data.path = "imagenet", str(path)
    config.data.image_size = 64
    config.data.num_threads = 2
    config.batch_size = config.evaluation.batch_size = 4
    return config


def by_name(miniature, split):
    """File name -> (label, pixels), decoded from the class folders by OpenCV.

    It decodes what Pillow does, to the same values, but for CMYK.
    """
    truth = {}
    for name, synset in (miniature.train if split == "train" else miniature.validation).items():
        path = miniature.folders / FOLDERS[split] / synset / name
        pixels = cv2.imread(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if name == miniature.special["cmyk"]:
            pixels = np.asarray(Image.open(path).convert("RGB"))
        truth[name] = SYNSETS.index(synset), pixels
    return truth


def names_in(out, split):
    (folder,) = (out / "imagenet2012").iterdir()
    source = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[index]["file_name"].decode() for index in range(len(source))]


def check_examples(source, names, truth, converted):
    assert sorted(names) == sorted(truth)
    assert len(source) == len(names)
    for index, name in enumerate(names):
        example, (label, pixels) = source[index], truth[name]
        assert example["label"] == label, name
        assert example["image"].mode == "RGB"
        found = np.asarray(example["image"])
        # What was converted was compressed again, at the highest quality.
        np.testing.assert_allclose(found, pixels, rtol=0, atol=4 if name in converted else 0)


# The same examples


@pytest.mark.parametrize("split", SPLITS)
def test_prepared_examples_are_those_of_the_archives(miniature, prepared, split):
    converted = {miniature.special["cmyk"], miniature.special["png"]}
    source = open_source(settings(prepared).data, split)
    assert isinstance(source, PreparedImageNet)
    check_examples(source, names_in(prepared, split), by_name(miniature, split), converted)


@pytest.mark.parametrize("split", SPLITS)
def test_folders_give_the_same_examples(miniature, split):
    source = open_source(settings(miniature.folders).data, split)
    assert isinstance(source, ImageNetFolders)
    names = [Path(file).name for file in source.files]
    check_examples(source, names, by_name(miniature, split), ())


@pytest.mark.parametrize("split", SPLITS)
def test_data_of_tensorflow_datasets_gives_the_same_examples(miniature, written_by_tfds, split):
    source = open_source(settings(written_by_tfds).data, split)
    assert isinstance(source, PreparedImageNet)
    check_examples(source, names_in(written_by_tfds, split), by_name(miniature, split), ())


@pytest.mark.parametrize("kind", ["folders", "prepared"])
def test_sources_have_the_thousand_classes_and_survive_pickling(miniature, prepared, kind):
    path = miniature.folders if kind == "folders" else prepared
    source = open_imagenet(str(path), "train", channels=1)
    assert isinstance(source, LabelledImages)
    assert source.num_classes == 1000
    assert source.class_names == CLASS_NAMES
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 16
    for index in (0, 15):
        example, other = source[index], copy[index]
        assert example["image"].mode == "L"
        assert example["label"] == other["label"]
        np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(other["image"]))


def digest(batch, index):
    return int(batch["label"][index]), hashlib.sha256(batch["image"][index].tobytes()).hexdigest()


def test_evaluation_batches_are_the_same_from_all_three(miniature, prepared, written_by_tfds):
    found = []
    for path in (miniature.folders, prepared, written_by_tfds):
        config = settings(path)
        source = open_source(config.data, "validation")
        with evaluation_batches(
            config, source, EvaluationView(Preprocessing.of(config.data))
        ) as batches:
            found.append(
                sorted(digest(batch, i) for batch in batches for i in range(len(batch["label"])))
            )
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 8


def test_training_batches_hold_every_image_of_an_epoch(miniature, prepared):
    config = settings(prepared)
    config.augment.crop = "none"
    config.augment.flip_probability = 0.0
    source = open_source(config.data, "train")
    with train_batches(config, source, TrainingView(config)) as batches:
        first = [next(batches) for _ in range(4)]
    images = {digest(batch, i)[1] for batch in first for i in range(4)}
    labels = np.concatenate([batch["label"] for batch in first])
    assert len(images) == 16
    np.testing.assert_array_equal(
        np.sort(labels), np.repeat([SYNSETS.index(s) for s in miniature_imagenet.SYNSETS], 4)
    )
    assert not any(batch["replaced"].any() for batch in first)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(prepared):
    config = settings(prepared)
    source = open_source(config.data, "train")
    found = []
    for workers in (0, 2):
        config.data.num_workers = workers
        with train_batches(config, source, TrainingView(config)) as batches:
            found.append([next(batches) for _ in range(6)])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])


def test_reading_imports_no_tensorflow(prepared):
    code = (
        "import sys; from mambaout_jax.data.sets.imagenet import open_imagenet; "
        f"source = open_imagenet({str(prepared)!r}, 'train'); source[3]; "
        "print(sorted(set(sys.modules) & {'tensorflow', 'torch', 'jax'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_damaged_record_is_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    source = open_imagenet(str(tmp_path / "copy"), "train")
    records = [source._records[index] for index in range(3)]
    records[1]["image"] = records[1]["image"][:-300]
    source._records = records
    name = records[1]["file_name"].decode()
    with pytest.raises(UnreadableImageError, match=rf"cannot read {name} of .*5\.1\.0: .*truncat"):
        source[1]


# What is said


def test_the_newest_version_counts(prepared, written_by_tfds, tmp_path):
    for version, origin in (("5.1.0", prepared), ("10.0.0", written_by_tfds)):
        (folder,) = (origin / "imagenet2012").iterdir()
        shutil.copytree(folder, tmp_path / "imagenet2012" / version)
    info = tmp_path / "imagenet2012" / "10.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("5.0.0", "10.0.0"))
    source = open_imagenet(str(tmp_path), "train")
    assert source._folder.name == "10.0.0"


def test_fewer_images_than_imagenets_are_logged(miniature, caplog):
    open_imagenet(str(miniature.folders), "validation")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"the validation split of {miniature.folders} has 8 images, not ImageNet's 50,000"
    )


def test_a_missing_folder_is_answered_with_the_command(tmp_path):
    for path, words in (
        (tmp_path / "none", "none does not exist"),
        (tmp_path, "holds no ImageNet"),
        (tmp_path / "file", "file is a file"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(FileNotFoundError, match=words) as caught:
            open_imagenet(str(path), "train")
        caught.match(rf"looks for {path}/imagenet2012/<version>/dataset_info\.json")
        caught.match(
            r"mambaout prepare imagenet --train-tar ILSVRC2012_img_train\.tar "
            rf"--val-tar ILSVRC2012_img_val\.tar --out {path}"
        )


@pytest.mark.parametrize("name", ["5.1.0.incomplete", "incomplete.811C8Z_5.1.0"])  # ours, TFDS's
def test_an_unfinished_preparation_is_told(tmp_path, name):
    (tmp_path / "imagenet2012" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"is not finished; run the command that began it"):
        open_imagenet(str(tmp_path), "train")


def copy_with(prepared, tmp_path, **changes):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "imagenet2012" / "5.1.0"
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))
    return folder


def test_tfrecord_files_are_answered_with_how_to_convert(prepared, tmp_path):
    folder = copy_with(prepared, tmp_path, fileFormat="tfrecord")
    with pytest.raises(ValueError, match=rf"{folder} holds tfrecord files") as caught:
        open_imagenet(str(tmp_path), "train")
    caught.match(r"tfds build imagenet2012 --file_format=array_record")
    caught.match(r"mambaout prepare imagenet --train-tar")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": "\xff"}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset_info\.json (is damaged|holds no JSON object)"):
        open_imagenet(str(tmp_path), "train")


def test_sets_have_an_identity(miniature, prepared):
    of_files, of_shards = (
        {split: identity(open_imagenet(str(path), split)) for split in SPLITS}
        for path in (miniature.folders, prepared)
    )
    for split, examples in (("train", 16), ("validation", 8)):
        assert of_files[split]["examples"] == of_shards[split]["examples"] == examples
        assert list(of_files[split]["classes"]) == list(of_shards[split]["classes"])
        assert sum(of_files[split]["classes"].values()) == examples
    prints = [x["fingerprint"] for found in (of_files, of_shards) for x in found.values()]
    assert len(set(prints)) == 4
    assert identity(open_imagenet(str(prepared), "train")) == of_shards["train"]


def test_missing_shards_are_counted(prepared, tmp_path):
    folder = copy_with(prepared, tmp_path)
    shards = sorted(folder.glob("*train*"))
    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of the {len(shards)} train shards .*{shards[1].name}"
    ):
        open_imagenet(str(tmp_path), "train")


def test_other_labels_are_refused(prepared, tmp_path):
    folder = copy_with(prepared, tmp_path)
    (folder / "label.labels.txt").write_text("\n".join(reversed(SYNSETS)) + "\n")
    with pytest.raises(ValueError, match=r"labels of .* are not ImageNet-1k's synsets"):
        open_imagenet(str(tmp_path), "train")


def test_a_missing_split_is_told(miniature, tmp_path):
    shutil.copytree(miniature.folders / "train", tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"no validation split: none of val, validation"):
        open_imagenet(str(tmp_path), "validation")
    prepare_imagenet(tmp_path / "out", val_tar=miniature.val_tar, partial=True, processes=1)
    with pytest.raises(FileNotFoundError, match=r"no train split, only \['validation'\]"):
        open_imagenet(str(tmp_path / "out"), "train")


def test_validation_images_without_folders_are_told(miniature, tmp_path):
    (tmp_path / "val").mkdir()
    with tarfile.open(miniature.val_tar) as tar:
        tar.extractall(tmp_path / "val", filter="data")
    with pytest.raises(ValueError, match=r"are directly in .*/val, without their labels") as caught:
        open_imagenet(str(tmp_path), "validation")
    caught.match(rf"mambaout prepare imagenet --folder {tmp_path} --out DIR")


def test_folders_that_are_no_synsets_are_told(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train is empty; data\.source='imagenet' looks for"):
        open_imagenet(str(tmp_path), "train")
    (tmp_path / "train" / "n01440764").mkdir()
    with pytest.raises(ValueError, match=r"1 class folders of .* hold no images: \['n01440764'\]"):
        open_imagenet(str(tmp_path), "train")
    (tmp_path / "train" / "cats").mkdir()
    with pytest.raises(ValueError, match=r"1 folders that are not synsets.*\['cats'\].*=folder"):
        open_imagenet(str(tmp_path), "train")


@pytest.mark.parametrize("package", ["array_record", "tensorflow_datasets"])
def test_missing_packages_are_named(prepared, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(
        ModuleNotFoundError, match=rf"package {package}, .*pip install 'mambaout-jax\[data\]'"
    ):
        open_imagenet(str(prepared), "train")
