# SPDX-License-Identifier: Apache-2.0
"""Decoding of what users' files hold, and every error."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mambaout_jax.data.sets import image_files
from mambaout_jax.data.sets.image_files import (
    UnreadableImageError,
    decode_image,
    open_image,
    read_image,
)


def write(path, value=128, mode="L", size=(3, 2), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


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


def test_decode_image_is_read_image_of_the_content(tmp_path, picture):
    path = tmp_path / "picture.png"
    picture.save(path)
    decoded = decode_image(path.read_bytes(), 3, "picture 7")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
    with pytest.raises(UnreadableImageError, match=r"cannot read picture 7: the file is empty"):
        decode_image(b"", 3, "picture 7")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_open_image_tells_format_and_mode_of_a_truncated_file(picture, mode):
    file = io.BytesIO()
    picture.resize((240, 160)).convert(mode).save(file, "JPEG")
    image = open_image(file.getvalue()[: len(file.getvalue()) * 6 // 10])
    assert (image.format, image.mode, image.size) == ("JPEG", mode, (240, 160))


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", tmp_path):
        with pytest.raises(UnreadableImageError, match=f"cannot read {path}: it is not an ordin"):
            read_image(path, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", size=(30, 20))
    assert read_image(path, 1, max_pixels=600).size == (30, 20)
    words = r"it has 600 pixels, and at most 599 are read; .* --config\.data\.max_pixels=600"
    with pytest.raises(UnreadableImageError, match=rf"cannot read .*x\.{suffix}: {words}"):
        read_image(path, 1, max_pixels=599)


def test_the_limit_may_be_above_that_of_pillow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.png", size=(30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow refuses twice as many
    with pytest.raises(UnreadableImageError, match=r"it has 600 pixels, .*max_pixels=600"):
        read_image(path, 1)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 400)
    assert read_image(path, 1, max_pixels=600).size == (30, 20)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_opencv_gives_the_pixels_of_pillow(tmp_path, mode, channels):
    photo = Image.fromarray(load_sample_images().images[0]).convert(mode)
    photo.save(tmp_path / "photo.jpg", quality=90)
    pixels = read_image(tmp_path / "photo.jpg", channels, "opencv")
    assert isinstance(pixels, np.ndarray)
    expected = np.asarray(read_image(tmp_path / "photo.jpg", channels))
    error = np.abs(pixels - expected.reshape(pixels.shape).astype(int))
    # The grey of a colour image is the JPEG's own luma, which Pillow computes again from clipped
    # colours.
    assert error.mean() < 0.1 if mode == "RGB" and channels == 1 else error.max() == 0


@pytest.mark.parametrize("kind", ["CMYK", "PNG", "turned"])
def test_files_that_opencv_reads_otherwise_stay_with_pillow(tmp_path, kind):
    photo = Image.fromarray(load_sample_images().images[1]).convert(
        "CMYK" if kind == "CMYK" else "RGB"
    )
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    photo.save(tmp_path / "photo", format="PNG" if kind == "PNG" else "JPEG", exif=exif)
    image, expected = (read_image(tmp_path / "photo", 3, name) for name in ("opencv", "pillow"))
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(image, expected)


def test_opencv_names_a_file_that_is_cut_short(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(load_sample_images().images[0]).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(
        UnreadableImageError, match=r"cannot read .*photo\.jpg: OpenCV cannot decode"
    ):
        read_image(path, 3, "opencv")
