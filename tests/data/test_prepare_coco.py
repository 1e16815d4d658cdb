# SPDX-License-Identifier: Apache-2.0
"""`mambaout prepare coco`: the same examples as from the folders, resumed and verified."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from support.miniature_coco import SIZES, instances, write

from mambaout_jax.cli.main import main
from mambaout_jax.data.prepare import coco as prepare
from mambaout_jax.data.prepare.coco import prepare_coco
from mambaout_jax.data.sets.coco import PreparedCoco, open_coco
from mambaout_jax.data.sets.identity import identity
from mambaout_jax.data.sets.sources import DetectionImages

SHARD_BYTES = 2500  # two images


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Processes are started by the tests of `resumable` and by that of the command line."""

    def write_shards(shards, write, check, progress, processes):
        for of_split in shards.values():
            for path, images in of_split.items():
                if not path.exists():
                    write(path, images)
                check(path, images)

    monkeypatch.setattr(prepare, "write_shards", write_shards)


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "coco", instances(), instances())


@pytest.fixture
def out(root, tmp_path):
    prepare_coco(tmp_path / "out", root, shard_bytes=SHARD_BYTES)
    return tmp_path / "out"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_prepared_examples_are_those_of_the_folders(root, out, split):
    folders, prepared = open_coco(str(root), split), open_coco(str(out), split)
    assert isinstance(prepared, PreparedCoco)
    assert isinstance(prepared, DetectionImages)
    assert len(prepared) == len(folders)
    for index in range(len(folders)):
        for name, value in folders[index].items():
            found = prepared[index][name]
            np.testing.assert_array_equal(np.asarray(found), np.asarray(value))
            assert type(found) is type(value)
    assert prepared.ground_truth() == folders.ground_truth()
    assert prepared.class_names == folders.class_names
    assert prepared.category_ids == folders.category_ids
    np.testing.assert_array_equal(prepared.image_sizes, folders.image_sizes)
    assert identity(prepared) == {**identity(folders), "kind": "PreparedCoco"}


def test_another_process_opens_the_same_files(out, monkeypatch):
    source = open_coco(str(out), "train", 1, "opencv", 4000)
    content = pickle.dumps(source)
    assert len(content) < 500  # and not the annotations
    there = pickle.loads(content)
    assert there[1]["image"].shape == source[1]["image"].shape  # OpenCV's pixels, and grey
    np.testing.assert_array_equal(there[0]["masks"], source[0]["masks"])


def test_it_says_what_it_made(root, tmp_path):
    prepared = prepare_coco(tmp_path / "out", root, shard_bytes=SHARD_BYTES)
    assert prepared.images == {"train": 5, "validation": 5}
    assert prepared.annotations == {"train": 6, "validation": 6}
    assert prepared.shards["train"] >= 2
    lines = str(prepared).splitlines()
    assert lines[0] == str(tmp_path / "out" / "coco_instances" / "1.0.0")
    assert lines[1] == f"train: 5 images in {prepared.shards['train']} shards, 6 annotations"
    assert lines[-1].endswith(f"--config.data.source=coco --config.data.path={tmp_path / 'out'}")
    assert list(prepared.folder.glob("*.tmp")) == []


def test_a_split_alone_is_prepared(tmp_path):
    root = write(tmp_path / "coco", None, instances())
    assert prepare_coco(tmp_path / "out", root).images == {"validation": 5}
    assert len(open_coco(str(tmp_path / "out"), "validation")) == 5
    with pytest.raises(FileNotFoundError, match=r"holds no train split, only \['validation'\]"):
        open_coco(str(tmp_path / "out"), "train")


def test_it_resumes_where_it_was_stopped(root, tmp_path, monkeypatch):
    written = []

    def write_shard(path, images):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        prepare.write_shard.__wrapped__(path, images)

    write_shard.__wrapped__ = prepare.write_shard
    monkeypatch.setattr(prepare, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare_coco(tmp_path / "out", root, shard_bytes=SHARD_BYTES)
    with pytest.raises(FileNotFoundError, match=r"is not finished; run the command that began it"):
        open_coco(str(tmp_path / "out"), "train")
    begun = list(written)
    monkeypatch.setattr(prepare, "write_shard", write_shard.__wrapped__)
    work = tmp_path / "out" / "coco_instances" / "1.0.0.incomplete"
    times = {name: (work / name).stat().st_mtime_ns for name in begun}
    (work / "train.partial").mkdir()  # as a kill leaves it
    (work / "train.partial" / "boxes.npy").write_text("")
    finished = prepare_coco(tmp_path / "out", root, shard_bytes=SHARD_BYTES).folder
    assert {name: (finished / name).stat().st_mtime_ns for name in begun} == times
    assert not (finished / "train.partial").exists()
    assert len(open_coco(str(tmp_path / "out"), "train")) == 3
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    prepare_coco(tmp_path / "out", root, shard_bytes=SHARD_BYTES)  # only checks
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_source_is_refused(root, out):
    content = instances()
    content["annotations"][0]["bbox"][0] = 6
    write(root, content)
    with pytest.raises(ValueError, match=r"was made from another source"):
        prepare_coco(out, root, shard_bytes=SHARD_BYTES)


def finished(out):
    return out / "coco_instances" / "1.0.0"


def shard(out):
    return next(finished(out).glob("coco-train.array_record-00000-*"))


def test_damage_is_found_when_it_is_called_again(root, out):
    path = shard(out)
    good = path.read_bytes()
    inside = good.index(b"\xff\xd8\xff") + 300  # of the first image
    flipped = bytes([good[inside] ^ 1])
    for content in (good[:inside], good[:inside] + flipped + good[inside + 1 :], b""):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"array_record-00000-.* is damaged \(.*\); remove this file and run"
        ):
            prepare_coco(out, root, shard_bytes=SHARD_BYTES)
    path.unlink()
    prepare_coco(out, root, shard_bytes=SHARD_BYTES)
    assert path.read_bytes() == good
    images = list(ArrayRecordDataSource([str(path)]))
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for image in images:  # whole, but of one pixel in another colour
        writer.write(image[:-3] + bytes([image[-3] ^ 1]) + image[-2:])
    writer.close()
    with pytest.raises(ValueError, match=r"is damaged \(it does not hold .*000000000010\.jpg\)"):
        prepare_coco(out, root, shard_bytes=SHARD_BYTES)
    path.write_bytes(good)
    for name in ("boxes", "ids", "mask_words"):
        file = finished(out) / "train" / f"{name}.npy"
        good = np.load(file)
        np.save(file, good + 1)
        with pytest.raises(
            ValueError, match=r"1\.0\.0/train is damaged: it does not hold the annotations of .*"
            "instances_train2017.json; remove this folder and run the same command again"
        ):  # fmt: skip
            prepare_coco(out, root, shard_bytes=SHARD_BYTES)
        np.save(file, good)
    prepare_coco(out, root, shard_bytes=SHARD_BYTES)


def test_damage_is_named_when_it_is_opened(out):
    path = shard(out)
    count = len(list(finished(out).glob("coco-train.*")))
    path.rename(out / "elsewhere")
    with pytest.raises(
        FileNotFoundError,
        match=rf"^1 of the {count} train shards are missing from .*, the first: {path.name}; copy",
    ):
        open_coco(str(out), "train")
    shutil.copy(next(finished(out).glob("coco-validation.array_record-00001-*")), path)
    wrong = len(open_coco(str(out), "validation"))
    assert wrong == 5
    manifest = finished(out) / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"shards": {"train": 0}}))
    with pytest.raises(FileNotFoundError, match=r"holds no train split"):
        open_coco(str(out), "train")
    for damaged in ("{", "[]", "{}", '{"shards": 3}'):
        manifest.write_text(damaged)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged \(.*\); prepare the data"):
            open_coco(str(out), "train")
    one = {**content, "shards": {"train": 1}}
    manifest.write_text(json.dumps(one))
    for file in finished(out).glob("coco-train.*"):
        file.rename(finished(out) / "coco-train.array_record-00000-of-00001")
    with pytest.raises(ValueError, match=r"the train shards of .* hold \d images and its .* 5; "):
        open_coco(str(out), "train")


def test_images_are_checked_while_they_are_written(root, tmp_path):
    photo = root / "train2017" / "000000000020.jpg"
    Image.new("RGB", (64, 40)).save(photo)
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(str(photo))} has 40 x 64 pixels \(height x width\), and its "
        "annotations say 64 x 40; give the images that they were made on",
    ):
        prepare_coco(tmp_path / "out", root)
    photo.write_bytes(b"<html>")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"cannot read {re.escape(str(photo))}: no image format"):
        prepare_coco(tmp_path / "out", root)
    photo.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of the 5 images of the train split are empty files"):
        prepare_coco(tmp_path / "out", root)
    photo.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 5 images that .* are missing from"):
        prepare_coco(tmp_path / "out", root)


def test_a_folder_that_is_no_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--folder .*none is no folder; data\.source"):
        prepare_coco(tmp_path / "out", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"--folder .* holds no annotations; data\.source="):
        prepare_coco(tmp_path / "out", tmp_path)
    other = instances()
    other["categories"][0]["name"] = "mug"
    root = write(tmp_path / "coco", instances(), other)
    with pytest.raises(ValueError, match=r"has other categories than .*cup.*mug"):
        prepare_coco(tmp_path / "out", root)


def test_command_line_prepares_and_says_what_is_wrong(root, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # in processes, as everywhere
    out = tmp_path / "out"
    command = ["prepare", "coco", "--out", str(out), "--processes", "1"]
    assert main([*command, "--folder", str(root)]) == 0
    text = capsys.readouterr()
    assert f"validation: {len(SIZES)} images in 1 shards, 6 annotations" in text.out
    assert f"--config.data.path={out}" in text.out
    assert text.err == ""
    assert len(open_coco(str(out), "train")) == 3
    for wrong, sentence in (
        ([], "coco needs --folder DIR"),
        (["--folder", str(root), "--partial"], "--partial is for imagenet and ade20k; coco needs"),
        (["--val-tar", "x.tar"], "--val-tar is for imagenet; coco needs --folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, *wrong])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
    assert main([*command, "--folder", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err
