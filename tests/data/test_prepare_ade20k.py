# SPDX-License-Identifier: Apache-2.0
"""`mambaout prepare ade20k`: what it writes, that it resumes, and every error."""

import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
from support import miniature_ade20k, shards_here
from support.miniature_ade20k import png

from mambaout_jax.cli.main import main
from mambaout_jax.data.prepare import ade20k as prepare
from mambaout_jax.data.prepare.ade20k import prepare_ade20k
from mambaout_jax.data.sets.ade20k import open_ade20k
from mambaout_jax.data.sets.image_files import UnreadableImageError

SHARD_BYTES = 9_000  # some images


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(prepare, "write_shards", shards_here.write_shards)


@pytest.fixture
def source(tmp_path):
    miniature_ade20k.build(tmp_path / "source")
    return tmp_path / "source"


def run(out, **options):
    return prepare_ade20k(out, **{"partial": True, "shard_bytes": SHARD_BYTES, **options})


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_archive_and_folder_give_the_same_bytes(quickly, source, tmp_path):
    archive = miniature_ade20k.zipped(source, tmp_path / "set.zip")
    one = run(tmp_path / "one", archive=archive)
    two = run(tmp_path / "two", folder=source)
    assert one.images == two.images == {"train": 5, "validation": 3}
    assert one.folder == tmp_path / "one" / "ade20k" / "1.0.0"
    assert one.shards["train"] >= 2
    assert digests(one.folder) == digests(two.folder)
    assert f"train: 5 images with their labels in {one.shards['train']} shards" in str(one)
    assert f"--config.data.path={tmp_path / 'one'}" in str(one)


def test_files_are_kept_byte_for_byte_in_the_order_of_a_hash(quickly, source, tmp_path):
    run(tmp_path / "out", folder=source)
    found = open_ade20k(str(tmp_path / "out"), "train")
    names = []
    for index in range(len(found)):
        name, image, _, labels = found._read(index)
        stem = name.split()[1]
        names.append(stem)
        assert image == (source / "images" / "training" / f"{stem}.jpg").read_bytes()
        assert labels == (source / "annotations" / "training" / f"{stem}.png").read_bytes()
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert sorted(names) == [f"ADE_train_{i:08}" for i in range(1, 6)]
    record = found._records[0]
    assert set(json.loads(record.partition(b"\n")[0])) == {"name", "image", "labels"}


def test_a_stopped_preparation_goes_on_to_the_same_bytes(quickly, source, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", folder=source)
    read, count = prepare.Pair.read, iter(range(100))

    def stopped(pair):
        if next(count) == 4:
            raise KeyboardInterrupt
        return read(pair)

    monkeypatch.setattr(prepare.Pair, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", folder=source)
    work = tmp_path / "out" / "ade20k" / "1.0.0.incomplete"
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("*-of-?????")}
    assert 0 < len(finished) < sum(whole.shards.values())
    assert list(work.glob("*.tmp"))
    with pytest.raises(FileNotFoundError, match="is not finished"):
        open_ade20k(str(tmp_path / "out"), "train")
    again = run(tmp_path / "out", folder=source)
    assert digests(again.folder) == digests(whole.folder)
    assert {name: (again.folder / name).stat().st_mtime_ns for name in finished} == finished
    # Called again, everything is checked and kept
    shard = next(again.folder.glob("*train*"))
    content = shard.read_bytes()
    run(tmp_path / "out", folder=source)
    shard.write_bytes(content[:-700])
    with pytest.raises(ValueError, match=rf"{shard} is damaged .*; remove this file and run the"):
        run(tmp_path / "out", folder=source)
    shard.unlink()
    assert digests(run(tmp_path / "out", folder=source).folder) == digests(whole.folder)


def test_files_of_the_same_names_and_other_contents_are_another_source(quickly, source, tmp_path):
    folder = run(tmp_path / "out", folder=source).folder
    image = source / "images" / "training" / "ADE_train_00000001.jpg"
    longer = image.read_bytes() + b"\0"
    image.write_bytes(longer)
    with pytest.raises(ValueError, match=r"was made from another source"):
        run(tmp_path / "out", folder=source)
    changed = run(tmp_path / "other", folder=source).folder
    for shard in changed.glob("*.array_record*"):
        (folder / shard.name).write_bytes(shard.read_bytes())
    image.write_bytes(longer[:-1])
    with pytest.raises(ValueError, match=r"it holds ADE_train_00000001 in place of .*other bytes"):
        run(tmp_path / "out", folder=source)


def test_another_source_is_refused(quickly, source, tmp_path):
    run(tmp_path / "out", folder=source)
    (source / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    (source / "annotations" / "validation" / "ADE_val_00000001.png").unlink()
    with pytest.raises(ValueError, match=r"was made from another source \(of {'train': 5, 'valida"):
        run(tmp_path / "out", folder=source)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "a label file is a PNG, and this starts with"),
        (png(np.zeros((60, 80, 3), np.uint8)), r"pixels of 8 bits \(RGB\)"),
        (png(np.zeros((60, 80), np.uint16)), r"pixels of 16 bits \(grey\)"),
        (png(np.full((60, 80), 151, np.uint8)), "holds 151"),
        (png(np.zeros((60, 81), np.uint8)), "has 60 x 81 pixels .* has 60 x 80"),
    ],
)
def test_unsuitable_labels_are_named_and_nothing_is_finished(
    quickly, source, tmp_path, content, words
):
    labels = source / "annotations" / "training" / "ADE_train_00000003.png"
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=rf"ADE_train_00000003\.png of {source}.*{words}"):
        run(tmp_path / "out", folder=source)
    assert not (tmp_path / "out" / "ade20k" / "1.0.0").exists()


def test_damaged_images_and_empty_files_are_named(quickly, source, tmp_path):
    image = source / "images" / "training" / "ADE_train_00000002.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:-300])
    with pytest.raises(UnreadableImageError, match=rf"cannot read {image} of .*truncated"):
        run(tmp_path / "out", folder=source)
    image.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of the 5 images of the train split are empty files"):
        run(tmp_path / "out2", folder=source)
    assert not (tmp_path / "out2").exists()


def test_pairs_that_do_not_fit_are_told_of_archives_too(quickly, source, tmp_path):
    (source / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    archive = miniature_ade20k.zipped(source, tmp_path / "set.zip")
    for options, where in (({"folder": source}, source), ({"archive": archive}, "training of")):
        with pytest.raises(FileNotFoundError, match=rf"1 of the 5 images in .*{where}.* no labels"):
            run(tmp_path / "out", **options)
    (source / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    (source / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 label files in annotations/validation of .*set2\.zip"):
        run(tmp_path / "out", archive=miniature_ade20k.zipped(source, tmp_path / "set2.zip"))


def test_another_number_of_images_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(ValueError, match=r"train split holds 5 images, .*20,210.*--partial"):
        run(tmp_path / "out", folder=source, partial=False)
    shutil.rmtree(source / "images" / "training")
    shutil.rmtree(source / "annotations" / "training")
    with pytest.raises(ValueError, match=r"validation split holds 3 images, .*2,000"):
        run(tmp_path / "out", folder=source, partial=False)
    assert not (tmp_path / "out").exists()


def test_archives_that_are_none_or_damaged_are_told(quickly, source, tmp_path):
    archive = miniature_ade20k.zipped(source, tmp_path / "set.zip")
    with pytest.raises(FileNotFoundError, match=r"--zip .*none\.zip does not exist; data\.csail"):
        run(tmp_path / "out", archive=tmp_path / "none.zip")
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.zip is no zip archive, or it is truncated .*fetch"):
        run(tmp_path / "out", archive=tmp_path / "cut.zip")
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo("ADEChallengeData2016/images/training/ADE_train_00000003.jpg")
    content = bytearray(archive.read_bytes())
    content[member.header_offset + 300] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.zip is damaged at ADE_train_00000003 \("):
        run(tmp_path / "out", archive=tmp_path / "flipped.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("ADE20K_2021_17_01/images/ADE/training/a/x_seg.png", "x")
    with pytest.raises(
        ValueError, match=r"other\.zip holds ADE20K_2021.*of 150 classes is data\.c"
    ):
        run(tmp_path / "out", archive=tmp_path / "other.zip")


def test_folders_that_are_none_are_told(tmp_path):
    for folder, words in (
        (tmp_path, "holds no images/ and annotations/"),
        ("none", "is no folder"),
    ):
        with pytest.raises(
            FileNotFoundError, match=rf"--folder .*{words}; give the folder ADEChal"
        ):
            run(tmp_path / "out", folder=tmp_path / folder)


def test_command_line_prepares_and_says_what_is_wrong(source, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", "ade20k", "--out", str(out), "--processes", "1"]
    archive = str(miniature_ade20k.zipped(source, tmp_path / "set.zip"))
    assert main([*command, "--zip", archive, "--partial"]) == 0
    text = capsys.readouterr()
    assert "validation: 3 images with their labels in 1 shards" in text.out
    assert f"--config.data.path={out}" in text.out
    assert text.err == ""
    assert len(open_ade20k(str(out), "train")) == 5
    for wrong in ([], ["--zip", archive, "--folder", str(source)]):
        assert main([*command, *wrong]) == 2
        assert "give --zip ADEChallengeData2016.zip, or --folder" in capsys.readouterr().err
    for dataset, wrong, sentence in (
        (
            "ade20k",
            ["--train-tar", "x"],
            "--train-tar is for imagenet; ade20k needs --zip or --fol",
        ),
        (
            "imagenet",
            ["--zip", "x"],
            "--zip is for ade20k; imagenet needs --train-tar or --val-tar",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["prepare", dataset, "--out", str(out), *wrong])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
