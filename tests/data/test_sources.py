# SPDX-License-Identifier: Apache-2.0
"""Folders of images: splits, replacement, and every error."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.config import default_config
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.sources import (
    ImageFolder,
    LabelledImages,
    ReplaceUnreadable,
    UnreadableImageError,
    open_source,
)


def write(path, value=128, mode="L", size=(3, 2), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


def write_classes(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write(root / name / f"{index:03}.png")
    return root


def paths(source):
    return list(source.files)


def labels(source):
    return [source[index]["label"] for index in range(len(source))]


# Splits


def test_image_folder_reads_the_split_it_is_given(tmp_path):
    write_classes(tmp_path / "train", cat=3, dog=2)
    write_classes(tmp_path / "val", cat=1, dog=4)
    train, validation = (ImageFolder(tmp_path, split, 0.5) for split in ("train", "validation"))
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert train.num_classes == 2
    assert labels(train) == [0, 0, 0, 1, 1]
    assert labels(validation) == [0, 1, 1, 1, 1]
    assert paths(validation)[0] == "val/cat/000.png"


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_image_folder_knows_the_names_of_a_validation_folder(tmp_path, name):
    write_classes(tmp_path / "train", cat=3, dog=2)
    write_classes(tmp_path / name, cat=0, dog=1)  # a class may be empty in validation
    assert labels(ImageFolder(tmp_path, "validation", 0.5)) == [1]


def test_image_folder_prefers_val_to_test(tmp_path):
    for name in ("train", "test", "val"):
        write_classes(tmp_path / name, cat=1, dog=1)
    assert paths(ImageFolder(tmp_path, "validation", 0.5)) == ["val/cat/000.png", "val/dog/000.png"]


def test_image_folder_holds_out_a_share_of_each_class(tmp_path):
    write_classes(tmp_path, a=20, b=7, c=2)
    train, validation = (ImageFolder(tmp_path, split, 0.2) for split in ("train", "validation"))
    np.testing.assert_array_equal(np.bincount(labels(validation)), [4, 1, 1])
    np.testing.assert_array_equal(np.bincount(labels(train)), [16, 6, 1])
    assert not set(paths(train)) & set(paths(validation))
    assert len(set(paths(train)) | set(paths(validation))) == 29


def test_image_folder_keeps_an_image_of_each_class_to_train_on(tmp_path):
    write_classes(tmp_path, a=2, b=10)
    np.testing.assert_array_equal(np.bincount(labels(ImageFolder(tmp_path, "train", 0.99))), [1, 1])


def test_image_folder_splits_alike_wherever_it_lies(tmp_path):
    first, second = (write_classes(tmp_path / name, a=30, b=30) for name in ("x", "y"))
    want = paths(ImageFolder(first, "validation", 0.3))
    assert paths(ImageFolder(second, "validation", 0.3)) == want
    # By hash, not by name: the files held out are no run of neighbours.
    numbers = [int(path[2:5]) for path in want[:9]]
    assert max(numbers) - min(numbers) > 12


def test_image_folder_hardly_moves_images_when_others_come(tmp_path):
    write_classes(tmp_path, a=40, b=40)
    before = set(paths(ImageFolder(tmp_path, "validation", 0.25)))
    write_classes(tmp_path, a=44, b=44)
    after = set(paths(ImageFolder(tmp_path, "validation", 0.25)))
    assert (len(before), len(after)) == (20, 22)
    assert len(before - after) <= 4  # a shuffle of the new list would move about 15


def test_image_folder_takes_everything_without_a_fraction(tmp_path):
    write_classes(tmp_path, a=1, b=3)
    assert len(ImageFolder(tmp_path, "train", 0.0)) == 4
    with pytest.raises(ValueError, match=r"validation split.*no image.*validation_fraction=0\.0"):
        ImageFolder(tmp_path, "validation", 0.0)


def test_image_folder_finds_images_of_any_depth_and_suffix(tmp_path):
    write(tmp_path / "b" / "x.PNG")
    write(tmp_path / "b" / "deep" / "er" / "y.JPEG")
    write(tmp_path / "b" / "deep" / "z.webp")
    write(tmp_path / "a" / "u.jpg")
    write(tmp_path / "a" / "v.bmp")
    write(tmp_path / "a" / "w.gif")
    write(tmp_path / "a" / "w.tiff")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    write(tmp_path / "a" / ".hidden.png")
    write(tmp_path / "a" / ".cache" / "x.png")
    write(tmp_path / ".git" / "x.png")
    source = ImageFolder(tmp_path, "train", 0.0, channels=1)
    assert paths(source) == [
        "a/u.jpg", "a/v.bmp", "a/w.gif", "a/w.tiff", "b/deep/er/y.JPEG", "b/deep/z.webp", "b/x.PNG",
    ]  # fmt: skip
    for index in range(len(source)):
        np.testing.assert_allclose(np.asarray(source[index]["image"]), 128, atol=2)


def test_image_folder_survives_pickling(tmp_path):
    source = ImageFolder(write_classes(tmp_path, a=2, b=2), "train", 0.5)
    copy = pickle.loads(pickle.dumps(source))
    assert paths(copy) == paths(source)
    assert copy[1]["label"] == 1


# Errors


def test_image_folder_says_what_is_wrong_with_a_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*nowhere does not exist"):
        ImageFolder(tmp_path / "nowhere", "train", 0.2)
    with pytest.raises(ValueError, match=r"x\.png is a file"):
        ImageFolder(write(tmp_path / "x.png"), "train", 0.2)


def test_image_folder_says_that_images_lie_directly_in_it(tmp_path):
    write(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"no sub-folders.*images are directly in it"):
        ImageFolder(tmp_path, "train", 0.2)
    write_classes(tmp_path / "val", a=1, b=1)
    write(tmp_path / "train" / "x.png")
    with pytest.raises(ValueError, match=r"only in train/: \[\]; only in val/: \['a', 'b'\]"):
        ImageFolder(tmp_path, "train", 0.2)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no sub-folders \\(and no images\\)"),
        ({"a": 0, "b": 0}, r"no images below .*\.jpeg, \.jpg"),
        ({"a": 5}, "only one class, 'a'.*train/ beside one of val, validation, valid, test"),
        ({"a": 5, "b": 0}, r"without images in .*\['b'\]"),
        ({"a": 5, "b": 1}, "class 'b' of .* a single image"),
    ],
)
def test_image_folder_says_what_is_wrong_with_classes(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(write_classes(tmp_path, **counts), "train", 0.2)


def test_image_folder_lists_both_sides_of_different_classes(tmp_path):
    write_classes(tmp_path / "train", a=1, b=1, c=1)
    write_classes(tmp_path / "val", a=1, d=1)
    with pytest.raises(ValueError, match=r"in train/: \['b', 'c'\]; only in val/: \['d'\]"):
        ImageFolder(tmp_path, "validation", 0.2)


def test_image_folder_wants_images_to_train_on_in_every_class(tmp_path):
    write_classes(tmp_path / "train", a=1, b=0)
    write_classes(tmp_path / "val", a=1, b=1)
    with pytest.raises(ValueError, match=r"without images in .*train: \['b'\]"):
        ImageFolder(tmp_path, "validation", 0.2)


def test_open_source_chooses_by_the_config(tmp_path):
    data = default_config().data
    data.path = str(write_classes(tmp_path, a=4, b=4))
    data.validation_fraction = 0.25
    folder = open_source(data, "validation")
    assert isinstance(folder, ImageFolder)
    assert labels(folder) == [0, 1]
    assert folder[0]["image"].mode == "RGB"
    data.source, data.channels = "digits", 1
    digits = open_source(data, "train")
    assert isinstance(digits, Digits)
    assert digits[0]["image"].mode == "L"
    assert isinstance(folder, LabelledImages)
    assert isinstance(digits, LabelledImages)


def test_open_source_refuses_unknown_words():
    data = default_config().data
    with pytest.raises(ValueError, match=r"split='val' is not known.*'train', 'validation'"):
        open_source(data, "val")
    data.source = "web"
    with pytest.raises(ValueError, match=r"data\.source='web'.*'digits', 'folder'"):
        open_source(data, "train")


# Replacement


@pytest.fixture
def damaged(tmp_path):
    """Images of value 10 * index; the last of six is HTML, the third empty."""
    for index in range(6):
        write(tmp_path / "ab"[index // 3] / f"{index}.png", 10 * index)
    (tmp_path / "a" / "2.png").write_bytes(b"")
    (tmp_path / "b" / "5.png").write_text("<html>")
    return ImageFolder(tmp_path, "train", 0.0, channels=1)


def test_image_folder_raises_for_a_corrupt_file(damaged, tmp_path):
    with pytest.raises(UnreadableImageError, match=rf"{tmp_path}/a/2\.png: the file is empty"):
        damaged[2]


def test_replace_unreadable_takes_the_next_image_and_logs_once(damaged, tmp_path, caplog):
    source = ReplaceUnreadable(damaged)
    for _ in range(2):
        examples = [source[index] for index in range(len(source))]
        values = [example["image"].getpixel((0, 0)) for example in examples]
        assert values == [0, 10, 30, 30, 40, 0]
        assert [example["label"] for example in examples] == [0, 0, 1, 1, 1, 0]
        assert [example["replaced"] for example in examples] == [False, False, True] * 2
    assert len(caplog.records) == 2
    assert f"{tmp_path}/a/2.png: the file is empty" in caplog.text
    assert f"{tmp_path}/b/5.png: no image format" in caplog.text
    assert all(record.levelname == "WARNING" for record in caplog.records)


def test_replace_unreadable_gives_up_after_ten(tmp_path):
    for index in range(14):
        write(tmp_path / "ab"[index // 12] / f"{index:02}.png", index)
    for index in range(1, 12):  # eleven in a row
        (tmp_path / "a" / f"{index:02}.png").write_bytes(b"")
    source = ReplaceUnreadable(ImageFolder(tmp_path, "train", 0.0))
    with pytest.raises(UnreadableImageError, match=r"11 examples in a row.*a/11\.png"):
        source[1]
    assert source[2]["image"].getpixel((0, 0)) == (12, 12, 12)  # ten are passed over


def test_a_set_that_is_read_from_a_folder_asks_for_it():
    data = default_config().data
    for source in ("folder", "imagenet"):
        data.source = source
        with pytest.raises(ValueError, match=r"needs the folder: set --config\.data\.path=DIR"):
            open_source(data, "train")


@pytest.mark.parametrize("source", ["folder", "imagenet"])
def test_an_address_in_place_of_the_folder_is_refused(source):
    data = default_config().data
    data.source, data.path = source, "s3://bucket/images"
    with pytest.raises(ValueError, match=r"^s3://bucket/images is an address"):
        open_source(data, "train")
