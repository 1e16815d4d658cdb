# SPDX-License-Identifier: Apache-2.0
"""One shard: what is stored of each kind of image, and that every damage is noticed."""

import io

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from support import miniature_imagenet
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.prepare.archives import train_members
from mambaout_jax.data.prepare.shards import check_shard, shard_path, write_shard
from mambaout_jax.data.sets.image_files import UnreadableImageError


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return miniature_imagenet.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def members(miniature):
    return list(train_members(miniature.train_tar))


def stored(path):
    """File name -> (image bytes, label), read with protobuf alone."""
    found = {}
    for record in ArrayRecordReader(str(path)).read_all():
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (name,) = feature["file_name"].bytes_list.value
        (image,) = feature["image"].bytes_list.value
        (label,) = feature["label"].int64_list.value
        found[name.decode()] = image, label
    return found


def test_shard_path_is_the_name_of_tensorflow_datasets(tmp_path):
    name = shard_path(tmp_path, "validation", 3, 64).name
    assert name == "imagenet2012-validation.array_record-00003-of-00064"


def test_write_shard_keeps_jpeg_in_grey_and_rgb_byte_for_byte(tmp_path, miniature, members):
    path = tmp_path / "shard"
    write_shard(path, members)
    records = stored(path)
    assert list(records) == [member.name for member in members]
    converted = {miniature.special["cmyk"], miniature.special["png"]}
    for member in members:
        image, label = records[member.name]
        assert label == member.label
        assert (image == member.read()) == (member.name not in converted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["shard"]
    size, names = check_shard(path, members)
    assert set(names) == converted
    assert size == sum(map(len, ArrayRecordReader(str(path)).read_all()))


@pytest.mark.parametrize("kind", ["cmyk", "png"])
def test_write_shard_makes_rgb_jpeg_of_cmyk_and_png(tmp_path, miniature, members, kind):
    (member,) = [member for member in members if member.name == miniature.special[kind]]
    write_shard(tmp_path / "shard", [member])
    image = Image.open(io.BytesIO(stored(tmp_path / "shard")[member.name][0]))
    original = Image.open(io.BytesIO(member.read()))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", original.size)
    assert (original.format, original.mode) == {"cmyk": ("JPEG", "CMYK"), "png": ("PNG", "RGB")}[
        kind
    ]
    error = np.asarray(image, int) - np.asarray(original.convert("RGB"), int)
    assert np.abs(error).max() <= 4
    assert np.abs(error).mean() < 0.6


def test_write_shard_names_an_image_that_cannot_be_decoded(tmp_path, members):
    path = tmp_path / "n01440764_1.JPEG"
    path.write_bytes(members[1].read()[:-200])
    damaged = members[1]._replace(path=str(path), offset=0, size=path.stat().st_size)
    with pytest.raises(UnreadableImageError, match=rf"{damaged.name} of {path}: .*truncated"):
        write_shard(tmp_path / "shard", [members[0], damaged])
    assert not (tmp_path / "shard").exists()


def test_check_shard_notices_other_images_labels_and_order(tmp_path, members):
    path = tmp_path / "shard"
    write_shard(path, members[:3])
    first, second, third = members[:3]
    relabelled = first._replace(label=first.label + 1)
    for other in (
        [first, second],
        [first, second, third, members[3]],
        [second, first, third],
        [relabelled, second, third],
    ):
        with pytest.raises(ValueError, match=r"shard is damaged .*; remove this file and run"):
            check_shard(path, other)


def test_check_shard_notices_damaged_bytes(tmp_path, members):
    path = tmp_path / "shard"
    write_shard(path, members[:3])
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:65536] + bytes(len(whole) - 65536)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard is damaged"):
            check_shard(path, members[:3])
    position = whole.index(members[1].read()[600:700])
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    with pytest.raises(ValueError, match=r"shard is damaged"):
        check_shard(path, members[:3])
