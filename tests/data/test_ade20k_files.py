# SPDX-License-Identifier: Apache-2.0
"""Label files of every kind, pairs that do not fit, records and manifests."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from support import miniature_ade20k
from support.miniature_ade20k import png

from mambaout_jax.data.sets import ade20k_files as files
from mambaout_jax.data.sets.image_files import UnreadableImageError


@pytest.fixture
def root(tmp_path):
    miniature_ade20k.build(tmp_path / "set")
    return tmp_path / "set"


# Labels


def test_labels_are_one_less_and_nothing_is_255():
    ids = np.arange(151, dtype=np.uint8).reshape(1, -1).repeat(2, 0)
    ids[1, 0] = 255
    found = files.decode_labels(png(ids), "x.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], [255, *range(150)])
    np.testing.assert_array_equal(found[1], [255, *range(150)])
    assert files.label_size(png(ids)[:32], "x.png") == (2, 151)


def test_a_palette_is_no_matter():
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(ids)
    image.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    for bits in (8, 4):  # Pillow writes what the numbers need, or as told
        file = io.BytesIO()
        small = Image.fromarray(ids % 16)
        small.putpalette([value for i in range(16) for value in (255 - i, i, 7)])
        (image if bits == 8 else small).save(file, "PNG", bits=bits)
        want = ids if bits == 8 else ids % 16
        found = files.decode_labels(file.getvalue(), "x.png")
        np.testing.assert_array_equal(found, np.where(want == 0, 255, want - 1))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.uint8), r"8 bits \(RGB\)"),
        (np.zeros((4, 5, 4), np.uint8), r"8 bits \(RGB with alpha\)"),
        (np.zeros((4, 5, 2), np.uint8), r"8 bits \(grey with alpha\)"),
        (np.zeros((4, 5), np.uint16), r"16 bits \(grey\)"),
        (np.zeros((4, 5), bool), r"1 bits \(grey\)"),
    ],
)
def test_labels_of_other_kinds_are_refused(array, words):
    with pytest.raises(
        ValueError, match=rf"^x\.png has pixels of {words}, .* one channel of 8.*ADEChallengeData"
    ) as caught:
        files.decode_labels(png(array), "x.png")
    assert not isinstance(caught.value, UnreadableImageError)  # no other image takes its place


def test_numbers_beyond_the_classes_are_named():
    ids = np.zeros((4, 5), np.uint8)
    ids[1, 2], ids[3, 3], ids[0, 0] = 151, 254, 255
    with pytest.raises(
        ValueError, match=r"^x\.png holds 151, 254, and labels are 0 \(other\), 1 to"
    ):
        files.decode_labels(png(ids), "x.png")


def test_damaged_label_files_are_named():
    whole = png(np.random.default_rng(0).integers(0, 150, (40, 50), np.uint8))
    for content, words in (
        (b"", "a label file is a PNG, and this is empty"),
        (b"<html>", r"and this starts with b'<html>'"),
        (whole[:20], "and this starts with"),
        (whole[: len(whole) // 2], ""),
        (whole[:60] + bytes(30) + whole[90:], ""),
    ):
        with pytest.raises(UnreadableImageError, match=rf"^cannot read x\.png: .*{words}"):
            files.decode_labels(content, "x.png")


def test_sizes_that_differ_are_told():
    image = Image.new("RGB", (5, 4))
    files.check_sizes(image, "x.jpg", (4, 5), "x.png")
    files.check_sizes(np.zeros((4, 5, 3), np.uint8), "x.jpg", (4, 5), "x.png")
    with pytest.raises(
        ValueError, match=r"^x\.png has 4 x 6 pixels \(height x width\), and x\.jpg has 4 x 5; give"
    ):
        files.check_sizes(image, "x.jpg", (4, 6), "x.png")
    with pytest.raises(ValueError, match=r"x\.jpg has 4 x 5; an orientation in its EXIF block"):
        files.check_sizes(image, "x.jpg", (5, 4), "x.png")


# Folders


def test_pairs_share_a_name(root):
    pairs = files.pairs_of(root, "train")
    assert [image.name for image, _ in pairs] == [f"ADE_train_{i:08}.jpg" for i in range(1, 6)]
    assert all(image.stem == labels.stem and labels.is_file() for image, labels in pairs)
    below = root / "images" / "validation" / "more"
    below.mkdir()
    (root / "images" / "validation" / "ADE_val_00000001.jpg").rename(below / "a.jpg")
    (root / "annotations" / "validation" / "more").mkdir()
    labels = root / "annotations" / "validation"
    (labels / "ADE_val_00000001.png").rename(labels / "more" / "a.png")
    assert files.pairs_of(root, "validation")[-1] == (below / "a.jpg", labels / "more" / "a.png")
    for old, new in (("1", "1-b"), ("2", "1")):  # "1-b.jpg" comes before "1.jpg", and 1 before 1-b
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            file = root / kind / "training" / f"ADE_train_0000000{old}.{suffix}"
            file.rename(file.with_name(f"ADE_train_0000000{new}.{suffix}"))
    stems = [image.stem for image, _ in files.pairs_of(root, "train")[:3]]
    assert stems == ["ADE_train_00000001", "ADE_train_00000001-b", "ADE_train_00000003"]


def test_missing_labels_and_images_are_counted_and_named(root):
    (root / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"^1 of the 5 images in .*images/training have no labels in .*annotations/training: "
        r"'ADE_train_00000002\.png' are not there; unpack the labels again",
    ):
        files.pairs_of(root, "train")
    (root / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    assert len(files.pairs_of(root, "train")) == 4
    for number in (1, 3, 4, 5):
        (root / "images" / "training" / f"ADE_train_{number:08}.jpg").unlink()
        if number == 1:
            with pytest.raises(
                ValueError, match=r"1 label files in .*training have no image in .*"
            ):
                files.pairs_of(root, "train")
    with pytest.raises(
        ValueError, match=r"train split is empty: no images below .*images/training"
    ):
        files.pairs_of(root, "train")


def test_missing_folders_are_named(root):
    (root / "annotations" / "validation").rename(root / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"no validation split: .*annotations/validation is"
    ):
        files.pairs_of(root, "validation")


def test_two_images_for_one_label_file_are_refused(root):
    image = root / "images" / "training" / "ADE_train_00000001.jpg"
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(
        ValueError, match=r"ADE_train_00000001\.jpg and ADE_train_00000001\.png, and"
    ):
        files.pairs_of(root, "train")


def test_the_release_is_found_in_its_parent(root):
    assert files.release_root(root) == root
    root.rename(root.with_name("ADEChallengeData2016"))
    assert files.release_root(root.parent) == root.with_name("ADEChallengeData2016")
    assert files.release_root(root.parent / "ADEChallengeData2016" / "images") is None


@pytest.mark.parametrize("name", ["ADE20K_2021_17_01", "images/ADE", "index_ade20k.pkl"])
def test_the_full_release_is_recognised(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=rf"holds {re.escape(name)}, of the full ADE20K release .*another download"
    ):
        files.release_root(tmp_path)


# Records


def test_records_give_back_what_was_packed():
    record = files.pack("ADE_val_00000001", b"\n{image}\n", b"labels\n")
    assert files.unpack(record) == ("ADE_val_00000001", b"\n{image}\n", b"labels\n")
    header, _, rest = record.partition(b"\n")
    assert json.loads(header) == {"name": "ADE_val_00000001", "image": 9, "labels": 7}
    assert rest == b"\n{image}\nlabels\n"
    for broken, words in (
        (record[:-1], r"ADE_val_00000001 has 15 bytes, not 9 \+ 7"),
        (record + b"x", r"ADE_val_00000001 has 17 bytes, not 9 \+ 7"),
        (b"\xff\xd8", "which is not its header"),
        (b"[]\n", "which is not its header"),
        (b'{"name": "x", "image": "1", "labels": 1}\n', "which is not its header"),
    ):
        with pytest.raises(ValueError, match=words):
            files.unpack(broken)


def test_manifests_give_back_what_was_written(tmp_path):
    shards = [files.shard_path(tmp_path, "train", index, 2) for index in range(2)]
    assert shards[1].name == "ade20k-train.array_record-00001-of-00002"
    for shard in shards:
        shard.write_bytes(b"12345")
    images = {shards[0]: [("a", 3, 4)], shards[1]: [("b", 5, 6), ("c", 7, 8)]}
    files.write_manifest(tmp_path, {"train": images})
    found = files.read_manifest(tmp_path, "train")
    assert found["shards"] == {shard.name: 5 for shard in shards}
    np.testing.assert_array_equal(found["sizes"], [[3, 4], [5, 6], [7, 8]])
    images[shards[1]][0] = ("b", 6, 5)
    files.write_manifest(tmp_path, {"train": images})
    assert files.read_manifest(tmp_path, "train")["sha256"] != found["sha256"]
    with pytest.raises(FileNotFoundError, match=r"no validation split, only \['train'\]"):
        files.read_manifest(tmp_path, "validation")
    shards[1].write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"00001-of-00002 has 4 bytes and had 5; copy it again"):
        files.read_manifest(tmp_path, "train")
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 train shards are missing .*00000-of"):
        files.read_manifest(tmp_path, "train")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"train": 3}', b'{"train": {"shards": {}}}']
)
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*prepare the data again"):
        files.read_manifest(tmp_path, "train")
