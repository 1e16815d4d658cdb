# SPDX-License-Identifier: Apache-2.0
"""Colour changes against mmseg's own results, OpenCV's, and a pixel-by-pixel HSV."""

import colorsys
import hashlib

import numpy as np
import pytest
from support.dense_goldens import load_dense

from mambaout_jax.data.views import photometric

OPERATIONS = {
    "brightness": lambda image, drawn: photometric.convert(image, offset=drawn),
    "contrast": lambda image, drawn: photometric.convert(image, factor=drawn),
    "saturation": photometric.saturate,
    "hue": lambda image, drawn: photometric.shift_hue(image, int(drawn)),
}


def noise(height=40, width=64):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def test_operations_are_mmsegs():
    arrays, _, _ = load_dense("photometric")
    image = np.ascontiguousarray(arrays.pop("image")[..., ::-1])  # stored as BGR
    assert len(arrays) == 8
    for key, want in arrays.items():
        name, drawn = key.split("_")
        got = OPERATIONS[name](image, float(drawn))[..., ::-1]
        # OpenCV's vector code, for 32 pixels and more, truncates where its scalar code rounds.
        exact = name in ("brightness", "contrast")
        assert np.abs(got.astype(int) - want).max() <= (0 if exact else 1), key


# What OpenCV 4.14.0 and 5.0.0 make of `noise()`, 64 pixels wide, around mmseg's formulas.
@pytest.mark.parametrize(
    ("name", "drawn", "want"),
    [
        ("saturation", 1.44, "6ab8b2517cf77aa3"),
        ("saturation", 0.6, "930a238bfad9f955"),
        ("hue", 9.0, "1188c4c2ff1f9235"),
        ("hue", -18.0, "7830e949529bdafd"),
    ],
)
def test_colours_are_opencvs_bit_for_bit(name, drawn, want):
    assert digest(OPERATIONS[name](noise(), drawn)) == want


@pytest.mark.slow
def test_hsv_is_that_of_the_installed_opencv():
    import cv2

    levels = np.arange(0, 256, 3, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(172, -1, 3)[:, :3680]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    found = np.stack(photometric._to_hsv(image), -1)
    np.testing.assert_array_equal(found, hsv)
    every = np.stack(np.meshgrid(np.arange(256), np.arange(180), np.arange(256)), -1)
    every = np.ascontiguousarray(every[..., [1, 0, 2]].reshape(180 * 256, 256, 3), np.uint8)
    back = photometric._to_rgb(*np.moveaxis(every.astype(np.int32), 2, 0))
    np.testing.assert_array_equal(back, cv2.cvtColor(every, cv2.COLOR_HSV2RGB))


def test_saturation_and_hue_do_what_they_say():
    image = noise(3, 5)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        for changed, expected in (
            (photometric.saturate(image, 0.6), (hue, saturation * 0.6, value)),
            (photometric.shift_hue(image, 17), (hue + 17 / 180, saturation, value)),
        ):
            want = 255 * np.array(colorsys.hsv_to_rgb(expected[0] % 1, *expected[1:]))
            assert np.abs(changed[index] - want).max() < 6  # hue has steps of two degrees


def test_grey_has_no_colour_to_change():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)  # (1, 256, 3)
    np.testing.assert_array_equal(photometric.saturate(grey, 1.5), grey)
    np.testing.assert_array_equal(photometric.shift_hue(grey, -9), grey)


def test_values_are_clipped_and_truncated():
    values = np.array([0, 1, 3, 100, 200, 255], np.uint8)
    np.testing.assert_array_equal(photometric.convert(values, 1.5), [0, 1, 4, 150, 255, 255])
    np.testing.assert_array_equal(photometric.convert(values, offset=-2.5), [0, 0, 0, 97, 197, 252])


class Scripted(np.random.Generator):
    """Draws that are given in advance: uniform numbers as shares of their interval."""

    def __init__(self, coins, shares=(), integers=()):
        super().__init__(np.random.PCG64())
        self._coins, self._shares, self._integers = map(iter, (coins, shares, integers))

    def random(self):
        return next(self._coins)

    def uniform(self, low, high):
        return low + next(self._shares) * (high - low)

    def integers(self, low, high):
        assert (low, high) == (-18, 18)
        return next(self._integers)


YES, NO = 0.4, 0.6


@pytest.mark.parametrize("first", [True, False])
def test_distort_keeps_mmsegs_order(first):
    image = noise()
    coins = [YES, YES if first else NO, YES, YES, YES]
    got = photometric.distort(image, Scripted(coins, [0.75, 0.9, 0.2], [-7]))
    want = photometric.convert(image, offset=16.0)
    if first:
        want = photometric.convert(want, factor=1.4)
    want = photometric.shift_hue(photometric.saturate(want, 0.7), -7)
    if not first:
        want = photometric.convert(want, factor=1.4)
    np.testing.assert_array_equal(got, want)


def test_distort_may_leave_an_image_alone():
    image = noise()
    before = image.copy()
    got = photometric.distort(image, Scripted([NO, YES, NO, NO, NO]))
    np.testing.assert_array_equal(got, before)
    assert photometric.distort(image, np.random.default_rng(0)).dtype == np.uint8
    np.testing.assert_array_equal(image, before)  # nothing is changed in place


def test_half_of_the_images_get_each_change():
    image = np.full((1, 1, 3), (200, 100, 50), np.uint8)
    rng = np.random.default_rng(0)
    unchanged = np.mean([(photometric.distort(image, rng) == image).all() for _ in range(2000)])
    assert abs(unchanged - 1 / 16) < 0.02  # four coins; few draws change nothing
