# SPDX-License-Identifier: Apache-2.0
"""`mambaout prepare imagenet`: what it writes, that a kill costs nothing, and every error."""

import hashlib
import io
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple

import cv2
import numpy as np
import pytest
from rich.console import Console
from support import miniature_imagenet

from mambaout_jax.cli.main import main
from mambaout_jax.data.prepare import imagenet as prepare
from mambaout_jax.data.prepare import resumable
from mambaout_jax.data.prepare.imagenet import prepare_imagenet
from mambaout_jax.imagenet_classes import SYNSETS

SHARD_BYTES = 15_000  # some images


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return miniature_imagenet.build(tmp_path_factory.mktemp("miniature"))


def from_tars(miniature, out, **options):
    settings = {
        "train_tar": miniature.train_tar,
        "val_tar": miniature.val_tar,
        "partial": True,
        "processes": 2,
        "shard_bytes": SHARD_BYTES,
    }
    return prepare_imagenet(out, **settings | options)


@pytest.fixture(scope="module")
def prepared(miniature, tmp_path_factory):
    return from_tars(miniature, tmp_path_factory.mktemp("prepared"))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


READ = """
import json, sys
import tensorflow_datasets as tfds

found = {}
for split in ("train", "validation"):
    source = tfds.data_source("imagenet2012", split=split, data_dir=sys.argv[1], download=False)
    found[split] = [
        [example["file_name"].decode(), int(example["label"]), example["image"].shape,
         int(example["image"].astype(int).sum())]
        for example in (source[index] for index in range(len(source)))
    ]
assert "tensorflow" not in sys.modules
print(json.dumps(found))
"""


def test_prepared_data_is_read_by_tensorflow_datasets_alone(miniature, prepared):
    """In a process that holds nothing of this project, nor TensorFlow."""
    out = prepared.folder.parent.parent
    result = subprocess.run(
        [sys.executable, "-c", READ, str(out)], capture_output=True, text=True, check=True
    )
    found = json.loads(result.stdout)
    for split, synsets, folder in (
        ("train", miniature.train, "train"),
        ("validation", miniature.validation, "val"),
    ):
        assert {row[0]: row[1] for row in found[split]} == {
            name: SYNSETS.index(synset) for name, synset in synsets.items()
        }
        assert len(found[split]) == len(synsets)
        for name, _, shape, total in found[split]:
            content = (miniature.folders / folder / synsets[name] / name).read_bytes()
            # As TensorFlow Datasets decodes, where OpenCV is installed.
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags).astype(int)
            # A CMYK file and a PNG are JPEG now; OpenCV has a CMYK formula of its own.
            special = name in (miniature.special["cmyk"], miniature.special["png"])
            assert shape == list(pixels.shape)
            assert abs(total - pixels.sum()) <= (4 * pixels.size if special else 0)


def test_prepared_tells_counts_and_conversions(miniature, prepared):
    assert prepared.images == {"train": 16, "validation": 8}
    sizes = [path.stat().st_size for path in (miniature.folders / "train").glob("*/*")]
    assert prepared.shards["train"] == -(-sum(sizes) // SHARD_BYTES) >= 3
    special = miniature.special
    assert prepared.converted == {
        "train": sorted([special["cmyk"], special["png"]]),
        "validation": [],
    }
    assert "train: 16 images in" in str(prepared)
    assert "2 converted to RGB JPEG" in str(prepared)


def test_shards_are_mixed_and_of_equal_size(prepared):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(prepared.folder).info.splits["train"]
    assert max(info.shard_lengths) - min(info.shard_lengths) <= 1
    source = tfds.data_source("imagenet2012", split="train", data_dir=prepared.folder.parent.parent)
    names = [source[index]["file_name"].decode() for index in range(len(source))]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first = {name[:9] for name in names[: info.shard_lengths[0]]}
    assert len(first) > 1


def test_folders_and_flat_validation_give_the_same_bytes(miniature, prepared, tmp_path):
    shutil.copytree(miniature.folders / "train", tmp_path / "source" / "train")
    with tarfile.open(miniature.val_tar) as tar:
        tar.extractall(tmp_path / "source" / "val", filter="data")
    from_folder = from_tars(
        miniature, tmp_path / "out", train_tar=None, val_tar=None, folder=tmp_path / "source"
    )
    assert digests(from_folder.folder) == digests(prepared.folder)


@pytest.mark.slow
def test_finished_data_is_checked_and_kept(miniature, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared.folder, out / "imagenet2012" / "5.1.0")
    before = digests(prepared.folder)
    assert from_tars(miniature, out).images == prepared.images
    assert digests(out / "imagenet2012" / "5.1.0") == before
    shard = next((out / "imagenet2012" / "5.1.0").glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{shard} is damaged .*; remove this file and run the"):
        from_tars(miniature, out)
    shard.unlink()
    from_tars(miniature, out)
    assert digests(out / "imagenet2012" / "5.1.0") == before


def test_a_terminal_shows_a_bar(miniature, tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        resumable, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120)
    )
    from_tars(miniature, tmp_path, processes=1)
    assert re.search(r"train: writing.*16/16", screen.getvalue())
    assert re.search(r"validation: writing.*8/8", screen.getvalue())


# A kill

SLOWLY = """
import sys, time
from pathlib import Path
from mambaout_jax.data.prepare import archives
from mambaout_jax.data.prepare import imagenet as prepare
from mambaout_jax.data.prepare import resumable
from mambaout_jax.data.prepare import shards

read = archives.Member.read

def read_slowly(member):
    time.sleep(0.2)
    return read(member)

archives.Member.read = read_slowly

if __name__ == "__main__":
    prepare.prepare_imagenet(
        Path(sys.argv[3]), train_tar=Path(sys.argv[1]), val_tar=Path(sys.argv[2]), partial=True,
        processes=2, shard_bytes=int(sys.argv[4]),
    )
"""


def test_a_killed_preparation_goes_on_to_the_same_bytes(miniature, prepared, tmp_path):
    script, out = tmp_path / "slowly.py", tmp_path / "out"
    script.write_text(SLOWLY)
    arguments = [miniature.train_tar, miniature.val_tar, out, SHARD_BYTES]
    command = [sys.executable, script, *map(str, arguments)]
    work = out / "imagenet2012" / "5.1.0.incomplete"
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while not any(re.fullmatch(r".*-of-\d{5}", path.name) for path in work.glob("*train*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)  # reads until no worker holds the pipe any more
    assert process.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("*-of-?????")}
    assert 0 < len(finished) < sum(prepared.shards.values())
    assert not (out / "imagenet2012" / "5.1.0").exists()
    from_tars(miniature, out)
    assert digests(out / "imagenet2012" / "5.1.0") == digests(prepared.folder)
    kept = out / "imagenet2012" / "5.1.0"
    assert {name: (kept / name).stat().st_mtime_ns for name in finished} == finished


def test_another_source_is_refused(miniature, prepared, tmp_path):
    out = tmp_path / "out"
    work = out / "imagenet2012" / "5.1.0.incomplete"
    work.mkdir(parents=True)
    shutil.copy(prepared.folder / "source.json", work)
    with pytest.raises(ValueError, match=r"made from another source \(of {'train': 16, 'valida"):
        from_tars(miniature, out, val_tar=None)
    with pytest.raises(ValueError, match=r"made from another source"):
        from_tars(miniature, out, shard_bytes=SHARD_BYTES + 1)
    for content in (b"{}", b"[]", b"", b'{"images": "\xe9"}', b'{"images": 3}'):
        (work / "source.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"source\.json is damaged .*remove the folder"):
            from_tars(miniature, out)
    (work / "source.json").unlink()
    (work / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"was not made by this command; choose another --out"):
        from_tars(miniature, out)


# Errors


def test_fewer_images_than_imagenet_are_refused_before_anything_is_written(miniature, tmp_path):
    with pytest.raises(ValueError, match=r"train split holds 16 images, .*1,281,167.*--partial"):
        from_tars(miniature, tmp_path, partial=False)
    with pytest.raises(ValueError, match=r"validation split holds 8 images, .*50,000"):
        from_tars(miniature, tmp_path, partial=False, train_tar=None)
    assert list(tmp_path.iterdir()) == []


def test_other_numbers_of_converted_images_than_imagenets_are_logged(
    miniature, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(prepare, "SPLIT_SIZES", {"train": 16, "validation": 8})
    with caplog.at_level(logging.WARNING):
        from_tars(miniature, tmp_path, partial=False, processes=1)
    (record,) = caplog.records
    assert (
        "2 train images were not grey or RGB JPEG files and were converted; in ImageNet there "
        in (record.getMessage())
    )


def test_a_damaged_image_is_named_and_the_rest_is_kept(miniature, tmp_path):
    shutil.copytree(miniature.folders, tmp_path / "source")
    path = next((tmp_path / "source" / "train" / "n07753592").iterdir())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=rf"cannot read {path.name} of {path}: .*truncated"):
        from_tars(
            miniature, tmp_path / "out", train_tar=None, val_tar=None, folder=tmp_path / "source"
        )
    assert not (tmp_path / "out" / "imagenet2012" / "5.1.0").exists()


def test_empty_files_are_counted_before_anything_is_written(miniature, tmp_path):
    shutil.copytree(miniature.folders / "train", tmp_path / "source" / "train")
    for path in (tmp_path / "source").rglob("*.JPEG"):
        path.write_bytes(b"")
    paths = {"train_tar": None, "val_tar": None, "folder": tmp_path / "source"}
    with pytest.raises(ValueError, match=r"16 of the 16 images of the train split are empty files"):
        from_tars(miniature, tmp_path / "out", **paths)
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written_are_told_first(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(NotADirectoryError, match=f"--out {out} cannot be made: .*is a file"):
            prepare_imagenet(out, folder=tmp_path)


def test_links_that_would_change_a_label_are_refused(miniature, tmp_path):
    shutil.copytree(miniature.folders / "train", tmp_path / "source" / "train")
    (tmp_path / "source" / "train" / "n07753592" / "up").symlink_to("..")
    with pytest.raises(ValueError, match=r"n07753592/up leads to .*; remove the link"):
        prepare_imagenet(tmp_path / "out", folder=tmp_path / "source", partial=True)


def test_a_name_that_is_there_twice_is_refused(miniature, tmp_path):
    shutil.copytree(miniature.folders, tmp_path / "source")
    path = next((tmp_path / "source" / "train" / "n07753592").iterdir())
    shutil.copy(path, tmp_path / "source" / "train" / "n01440764")
    with pytest.raises(ValueError, match=rf"{path.name} is there twice, in .* and .*"):
        from_tars(
            miniature, tmp_path / "out", train_tar=None, val_tar=None, folder=tmp_path / "source"
        )


def test_a_full_disk_is_noticed_first(miniature, tmp_path, monkeypatch):
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(ValueError, match=r"needs 0\.0 GB more, and its disk has 0\.0 GB free"):
        from_tars(miniature, tmp_path)


def test_command_line_prepares_and_says_what_is_wrong(miniature, tmp_path, capsys):
    command = ["prepare", "imagenet", "--out", str(tmp_path / "out"), "--processes", "1"]
    tars = ["--train-tar", str(miniature.train_tar), "--val-tar", str(miniature.val_tar)]
    assert main([*command, *tars, "--partial"]) == 0
    text = capsys.readouterr()
    assert "train: 16 images in 1 shards, 2 converted to RGB JPEG" in text.out
    assert f"--config.data.path={tmp_path / 'out'}" in text.out
    assert text.err == ""  # no bar where there is no terminal
    assert main(command) == 2
    assert "give --train-tar and --val-tar (or one of them), or --folder" in capsys.readouterr().err
    assert main([*command, *tars, "--folder", str(tmp_path)]) == 2
    assert "or --folder" in capsys.readouterr().err
    assert main([*command, "--folder", str(tmp_path)]) == 2
    assert f"--folder {tmp_path} holds neither train/ nor val/" in capsys.readouterr().err
    assert main([*command, "--train-tar", str(tmp_path / "none.tar")]) == 2
    assert "the train archive" in capsys.readouterr().err


def test_ctrl_c_is_told_and_ends_with_the_code_of_a_preemption(monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare_imagenet", interrupted)
    assert main(["prepare", "imagenet", "--folder", "x", "--out", str(tmp_path)]) == 75
    assert "the same command resumes here" in capsys.readouterr().err
