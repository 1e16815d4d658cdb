# SPDX-License-Identifier: Apache-2.0
"""OpenCV against Pillow on a photograph, and what it would do in silence."""

import io
import sys

import cv2
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from mambaout_jax.data.views import opencv


@pytest.fixture(scope="module")
def photograph():
    return sklearn.datasets.load_sample_image("china.jpg")  # (427, 640, 3)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_pixels_are_pillows(photograph, channels):
    content = jpeg(Image.fromarray(photograph).convert("L" if channels == 1 else "RGB"))
    want = np.asarray(Image.open(io.BytesIO(content))).reshape(427, 640, channels)
    np.testing.assert_array_equal(opencv.decode(content, channels), want)


def test_grey_of_a_colour_image_is_its_luma(photograph):
    content = jpeg(Image.fromarray(photograph))
    want = np.asarray(Image.open(io.BytesIO(content)).convert("L"), np.float64)
    got = opencv.decode(content, 1)
    assert got.shape == (427, 640, 1)
    assert np.abs(got[..., 0] - want).mean() < 0.5  # read from the file, not from rounded colours


def test_decoding_leaves_the_orientation_alone(photograph):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    content = jpeg(Image.fromarray(photograph[:40, :60]), exif=exif)
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (60, 40, 3)
    want = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(opencv.decode(content, 3), want)


def test_unreadable_bytes_raise(photograph):
    content = jpeg(Image.fromarray(photograph))
    for broken in (content[: len(content) * 6 // 10], b"", b"<html>not found</html>"):
        with pytest.raises(ValueError, match=f"cannot decode these {len(broken)} bytes"):
            opencv.decode(broken, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("box", "bound"),
    [
        ((10, 20, 458, 404), {"bilinear": 3.5, "bicubic": 2.5}),  # both sides shrink
        ((100, 50, 400, 200), {"bilinear": 2.8, "bicubic": 2.8}),  # one shrinks, one grows
        ((300, 100, 420, 230), {"bilinear": 0.5, "bicubic": 0.7}),  # both grow
    ],
)
def test_crops_are_close_to_pillows(photograph, box, interpolation, bound):
    how = Image.Resampling[interpolation.upper()]
    want = np.asarray(Image.fromarray(photograph).crop(box).resize((224, 224), how), np.float64)
    got = opencv.crop_and_resize(photograph, box, 224, interpolation)
    assert got.shape == (224, 224, 3)
    difference = np.abs(got - want)
    assert difference.mean() < bound[interpolation]
    assert abs((got - want).mean()) < 0.2  # no image becomes brighter or darker


def test_shrinking_averages_areas(photograph):
    box = (30, 40, 30 + 3 * 64, 40 + 2 * 64)
    got = opencv.crop_and_resize(photograph, box, 64, "bicubic")
    blocks = photograph[40 : 40 + 128, 30 : 30 + 192].reshape(64, 2, 64, 3, 3).astype(np.float64)
    assert np.abs(got - blocks.mean((1, 3))).max() <= 0.5 + 1e-6


def test_a_crop_of_the_right_size_is_itself(photograph):
    grey = photograph[..., :1]
    got = opencv.crop_and_resize(grey, (5, 7, 37, 39), 32, "bilinear")
    np.testing.assert_array_equal(got, grey[7:39, 5:37])


def test_opencv_runs_in_the_callers_thread():
    opencv.check_installed()
    assert cv2.getNumThreads() == 1


def test_missing_opencv_is_told_with_what_to_install(monkeypatch):
    opencv._cv2.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=r"mambaout_jax\[data\].*decoder=pillow"):
        opencv.check_installed()
