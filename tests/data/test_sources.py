# SPDX-License-Identifier: Apache-2.0
"""How a config opens a set, and what takes the place of an unreadable image."""

import pytest
from support.image_folders import write, write_classes

from mambaout_jax.config import default_config
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.sources import (
    ImageFolder,
    LabelledImages,
    ReplaceUnreadable,
    UnreadableImageError,
    open_source,
    set_of_folder,
)


def test_open_source_chooses_by_the_config(tmp_path):
    data = default_config().data
    data.path = str(write_classes(tmp_path, a=4, b=4))
    data.validation_fraction = 0.25
    folder = open_source(data, "validation")
    assert isinstance(folder, ImageFolder)
    assert [folder[index]["label"] for index in range(len(folder))] == [0, 1]
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


def test_open_source_refuses_a_task_that_the_set_does_not_serve():
    data = default_config().data
    data.source = "digits"
    words = r"^data\.source='digits' has examples for classification, not for task='detection'; "
    with pytest.raises(ValueError, match=words):
        open_source(data, "train", "detection")
    with pytest.raises(ValueError, match=r"not for task='flow'; no other set has them either"):
        open_source(data, "train", "flow")


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


def test_a_named_folder_is_a_set_of_the_task():
    words = {task: set_of_folder(task) for task in ("classification", "detection", "segmentation")}
    assert words == {"classification": "folder", "detection": "coco", "segmentation": "ade20k"}
    with pytest.raises(ValueError, match=r"no data set for task='counting' is read from a folder"):
        set_of_folder("counting")
