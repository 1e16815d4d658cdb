# SPDX-License-Identifier: Apache-2.0
"""Folders of images: splits, decoding of what users' files hold, and every error."""

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.config import default_config
from mambaout_jax.data.embedded import Digits
from mambaout_jax.data.sources import (
    ImageFolder,
    ReplaceUnreadable,
    Source,
    UnreadableImageError,
    open_source,
    read_image,
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
    with pytest.raises(ValueError, match=r"no sub-folders.*images lie directly in it"):
        ImageFolder(tmp_path, "train", 0.2)
    write_classes(tmp_path / "val", a=1, b=1)
    write(tmp_path / "train" / "x.png")
    with pytest.raises(ValueError, match=r"only in train/: \[\]; only in val/: \['a', 'b'\]"):
        ImageFolder(tmp_path, "train", 0.2)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no sub-folders \\(nor images\\)"),
        ({"a": 0, "b": 0}, r"no images below .*\.jpeg, \.jpg"),
        ({"a": 5}, "only one class, 'a'.*train/ beside one of val, validation, valid, test"),
        ({"a": 5, "b": 0}, r"without an image in .*\['b'\]"),
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
    with pytest.raises(ValueError, match=r"without an image in .*train: \['b'\]"):
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
    assert isinstance(folder, Source)
    assert isinstance(digits, Source)


def test_open_source_refuses_unknown_words():
    data = default_config().data
    with pytest.raises(ValueError, match=r"split='val' is not known.*'train', 'validation'"):
        open_source(data, "val")
    data.source = "web"
    with pytest.raises(ValueError, match=r"data\.source='web'.*'digits', 'folder'"):
        open_source(data, "train")


# Decoding


@pytest.fixture
def picture(rng):
    """A smooth colour picture, 24 x 16, which JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:16, 0:24]
    return Image.fromarray(np.stack([x * 10, y * 15, 255 - x * 10], axis=-1).astype(np.uint8))


def test_read_image_converts_cmyk_as_pillow_does(tmp_path, picture):
    path = tmp_path / "x.jpg"
    picture.convert("CMYK").save(path, quality=95)
    with Image.open(path) as opened:
        assert opened.mode == "CMYK"
        want = np.asarray(opened.convert("RGB"))
    got = np.asarray(read_image(path, 3))
    np.testing.assert_array_equal(got, want)
    assert np.abs(got.astype(int) - np.asarray(picture).astype(int)).mean() < 5
    grey = np.asarray(read_image(path, 1))
    np.testing.assert_allclose(grey, want @ [0.299, 0.587, 0.114], atol=1)  # ITU-R 601


def test_read_image_repeats_grey_in_three_channels(tmp_path, picture):
    path = tmp_path / "x.png"
    grey = picture.convert("L")
    grey.save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path, 1)), np.asarray(grey))
    np.testing.assert_array_equal(
        np.asarray(read_image(path, 3)), np.asarray(grey)[..., None].repeat(3, axis=-1)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_read_image_scales_sixteen_bits(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], dtype=np.uint16)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(
        np.asarray(read_image(path, 1)), [[0, 0, 1, 1], [128, 254, 255, 255]]
    )


def test_read_image_refuses_pixels_without_a_range(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableImageError, match=r"f\.tif: float pixels"):
        read_image(tmp_path / "f.tif", 3)
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UnreadableImageError, match="70000 are beyond 16 bits"):
        read_image(tmp_path / "i.tif", 3)


def test_read_image_lays_transparency_over_white(tmp_path):
    red = (200, 0, 0)
    rgba = Image.new("RGBA", (3, 1), (*red, 255))
    rgba.putpixel((1, 0), (*red, 0))
    rgba.putpixel((2, 0), (*red, 51))  # a fifth
    rgba.save(tmp_path / "rgba.png")
    want = [red, (255, 255, 255), (244, 204, 204)]
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "rgba.png", 3))[0], want, atol=1)

    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png", 1).getpixel((0, 0)) == 255

    palette = Image.new("P", (2, 1))
    palette.putpalette([*red, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    for name, options in (("p.gif", {"transparency": 1}), ("p.png", {"transparency": b"\xff\x00"})):
        palette.save(tmp_path / name, **options)
        got = np.asarray(read_image(tmp_path / name, 3))[0]
        np.testing.assert_array_equal(got, [red, (255, 255, 255)])


def test_read_image_reads_palettes_and_bits(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "p.png", 3))[0], [(10, 20, 30), (40, 50, 60)]
    )
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "bits.png", 1)), [[255, 0]])


# What a camera stores for a scene that stands upright, by orientation: numpy on (H, W, C).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),  # the camera lay on its side: turned clockwise, it is upright
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_read_image_turns_upright(tmp_path, picture, orientation, suffix):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(picture))))
    exif = Image.Exif()
    exif[0x010F] = "camera"
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 95}
    stored.save(path, exif=exif, **options)
    got = np.asarray(read_image(path, 3)).astype(int)
    assert got.shape == (16, 24, 3)
    assert np.abs(got - np.asarray(picture)).mean() < 4


def exif_block(orientation, order="<", **broken):
    head = {"<": b"II", ">": b"MM"}[order]
    start, count, offset = broken.get("start", 8), broken.get("count", 2), broken.get("offset", 38)
    return b"".join(
        [
            b"Exif\0\0" + head + struct.pack(order + "HI", 42, start),
            struct.pack(order + "H", count),
            struct.pack(order + "HHII", 0x010F, 2, 9, offset),  # the maker's name, stored elsewhere
            struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0),
        ]
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_read_image_bears_broken_exif(tmp_path, picture, suffix, order, recwarn):
    path = tmp_path / f"x.{suffix}"

    def shape(exif):
        picture.save(path, exif=exif)
        return np.asarray(read_image(path, 3)).shape

    upright, turned = (16, 24, 3), (24, 16, 3)
    # The tag before the orientation points beyond the end: the orientation still counts.
    assert shape(exif_block(6, order, offset=10**6)) == turned
    assert shape(exif_block(6, order, start=10**6)) == upright
    assert shape(exif_block(6, order)[:-8]) == upright
    assert shape(exif_block(1, order, count=60_000)) == upright
    assert shape(exif_block(77, order)) == upright
    assert shape(b"Exif\0\0nonsense") == upright
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><p>Not found", r"no image format starts with b'<!DOCTYPE html><'"),
        (b"\xff\xd8\xff\xe0 nothing", "cannot read"),
    ],
)
def test_read_image_names_the_file_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"cannot read {path}: ") as caught:
        read_image(path, 3)
    caught.match(reason)
    # A worker process sends the error through a pipe.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_read_image_refuses_truncated_files(tmp_path, picture, image_format):
    file = io.BytesIO()
    picture.resize((240, 160)).save(file, image_format)
    path = tmp_path / "short.jpg"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) * 6 // 10])
    with pytest.raises(UnreadableImageError, match=str(path)):
        read_image(path, 3)


def test_read_image_names_a_missing_file(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: .*No such file"):
        read_image(tmp_path / "gone.jpg", 3)


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
