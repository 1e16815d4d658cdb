# SPDX-License-Identifier: Apache-2.0
"""Where images lie in ImageNet's archives and folders: bytes, labels, and every error."""

import importlib.util
import io
import shutil
import tarfile

import pytest
from support import miniature_imagenet

from mambaout_jax.data.prepare.archives import (
    folder_members,
    train_members,
    validation_labels,
    validation_members,
)
from mambaout_jax.imagenet_classes import SYNSETS


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return miniature_imagenet.build(tmp_path_factory.mktemp("miniature"))


def contents(members):
    return {member.name: (member.label, member.read()) for member in members}


def expected(miniature, split):
    """The same images as the class folders hold, found without the code under test."""
    synsets = miniature.train if split == "train" else miniature.validation
    folder = miniature.folders / ("train" if split == "train" else "val")
    return {
        name: (sorted(SYNSETS).index(synset), (folder / synset / name).read_bytes())
        for name, synset in synsets.items()
    }


def test_train_members_are_the_bytes_of_the_inner_archives(miniature):
    found = contents(train_members(miniature.train_tar))
    assert found == expected(miniature, "train")
    assert len(found) == 16


def test_validation_members_have_the_labels_of_their_numbers(miniature):
    found = contents(validation_members(miniature.val_tar, validation_labels(None)))
    assert found == expected(miniature, "validation")
    assert len(found) == 8


@pytest.mark.parametrize("split", ["train", "validation"])
def test_folder_members_are_those_of_the_archives(miniature, split):
    assert contents(folder_members(miniature.folders, split, None)) == expected(miniature, split)


def test_folder_members_label_validation_images_that_lie_directly_in_val(miniature, tmp_path):
    (tmp_path / "val").mkdir()
    with tarfile.open(miniature.val_tar) as tar:
        tar.extractall(tmp_path / "val", filter="data")
    found = contents(folder_members(tmp_path, "validation", miniature.val_labels))
    assert found == expected(miniature, "validation")


def test_validation_labels_are_fifty_of_each_class(miniature):
    labels = validation_labels(None)
    assert [labels.count(label) for label in range(1000)] == [50] * 1000
    assert SYNSETS[labels[0]] == "n01751748"  # ILSVRC2012_val_00000001.JPEG shows a sea snake
    assert validation_labels(miniature.val_labels) == labels


def test_validation_labels_tell_what_to_do_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"mambaout-jax\[data\]'.*--val-labels FILE"):
        validation_labels(None)


def test_validation_labels_refuse_other_lists(tmp_path):
    file = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("490\n361\n" * 25_000)
    with pytest.raises(ValueError, match=r"50,000 words, of which 50,000 are no.*meta\.mat"):
        validation_labels(file)
    file.write_text("n01440764\n" * 49_999)
    with pytest.raises(ValueError, match=r"not a list of 50,000.*has 49,999 words"):
        validation_labels(file)
    with pytest.raises(FileNotFoundError, match=r"--val-labels .*none\.txt does not exist"):
        validation_labels(tmp_path / "none.txt")


def test_validation_labels_that_are_no_text_are_named(tmp_path):
    (tmp_path / "labels").write_bytes(b"n01440764\n\xff\n")
    with pytest.raises(ValueError, match=r"labels is no text in UTF-8 .*; give --val-labels FILE"):
        validation_labels(tmp_path / "labels")


def test_members_refuse_the_other_archive(miniature):
    with pytest.raises(ValueError, match=r"holds ILSVRC2012_val_\d+\.JPEG, so.*--val-tar"):
        list(train_members(miniature.val_tar))
    with pytest.raises(ValueError, match=r"holds n01440764\.tar, so it is not.*--train-tar"):
        list(validation_members(miniature.train_tar, validation_labels(None)))


def test_members_refuse_a_number_beyond_the_labels(miniature):
    with pytest.raises(ValueError, match=r"val_\d+\.JPEG, so.*ILSVRC2012_val_00000003\.JPEG"):
        list(validation_members(miniature.val_tar, [0, 1, 2]))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>" * 100, b"\x1f\x8b" * 400])
def test_members_refuse_what_is_no_archive(tmp_path, content):
    path = tmp_path / "wrong.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.tar is not a tar archive.*SHA-256 sum b0820"):
        list(train_members(path))
    with pytest.raises(FileNotFoundError, match=r"train archive .*none\.tar does not exist"):
        list(train_members(tmp_path / "none.tar"))


@pytest.mark.parametrize("place", ["header", "after the header", "content", "padding", "end"])
def test_members_refuse_a_truncated_archive(miniature, tmp_path, place):
    for archive, members in (
        (miniature.train_tar, train_members),
        (miniature.val_tar, lambda path: validation_members(path, validation_labels(None))),
    ):
        with tarfile.open(archive) as tar:
            last = tar.getmembers()[-1]
        size = {
            "header": last.offset + 100,
            "after the header": last.offset_data,
            "content": last.offset_data + last.size // 2,
            "padding": last.offset_data + -(-last.size // 512) * 512 - 1,
            "end": last.offset_data + -(-last.size // 512) * 512,
        }[place]
        path = tmp_path / archive.name
        path.write_bytes(archive.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"damaged or truncated.*SHA-256"):
            list(members(path))


def test_member_read_notices_that_its_archive_has_shrunk(miniature, tmp_path):
    path = tmp_path / "train.tar"
    shutil.copy(miniature.train_tar, path)
    last = list(train_members(path))[-1]
    with path.open("r+b") as file:
        file.truncate(last.offset + last.size - 1)
    with pytest.raises(OSError, match=rf"train\.tar ends inside {last.name}"):
        last.read()


def test_train_members_pass_over_directories_and_prefixes(miniature, tmp_path):
    """As tar writes them when it is given a folder, not its files."""
    path = tmp_path / "again.tar"
    with tarfile.open(miniature.train_tar) as old, tarfile.open(path, "w") as new:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        new.addfile(folder)
        for info in old:
            content = old.extractfile(info).read()
            info.name = f"./{info.name}"
            new.addfile(info, io.BytesIO(content))
    assert contents(train_members(path)) == expected(miniature, "train")
