# SPDX-License-Identifier: Apache-2.0
"""Resizing against OpenCV's own numbers, live and as digests, and exact interpolation."""

import hashlib

import numpy as np
import pytest

from mambaout_jax.data.views.resize import resize_image, resize_labels, scaled_size

# (H, W, C) and size: enlarged, shrunk, halved, doubled, one side each way, a single row and pixel.
CASES = [
    ((37, 53, 3), (50, 72)),
    ((64, 96, 3), (40, 59)),
    ((64, 96, 1), (32, 48)),
    ((31, 20, 3), (62, 40)),
    ((45, 30, 4), (20, 61)),
    ((1, 17, 3), (9, 40)),
    ((1, 1, 3), (5, 7)),
    ((90, 120, 3), (1, 1)),
]

# SHA-256 (16 digits) of what OpenCV 4.14.0 and 5.0.0 make of `image(shape)` and its first channel.
DIGESTS = [
    ("154a259fbe12d9e1", "e794118118e69e67"),
    ("c151aefa1a8f4374", "9f9322f935eaafd9"),
    ("86be726f734fbcc9", "ff701c165627d13b"),
    ("c076909fe48e61c9", "76f362aa8eafc5a3"),
    ("33a5bd648962de22", "46fdc023645c8873"),
    ("73952ef6b79ebd3b", "57ac08815a73b688"),
    ("0602b676df2cbf27", "11f5cc6607e35447"),
    ("68359b69a432e352", "44bd7ae60f478fae"),
]


def image(shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def exact(pixels, size):
    """Bilinear interpolation pixel by pixel in float64."""
    old, result = pixels.astype(np.float64), np.empty((*size, pixels.shape[2]))
    for index in np.ndindex(size):
        places = []
        for i, new, length in zip(index, size, pixels.shape[:2], strict=True):
            position = min(max((i + 0.5) * length / new - 0.5, 0), length - 1)
            low = int(position)
            places.append((low, min(low + 1, length - 1), position - low))
        (top, bottom, down), (left, right, across) = places
        upper = old[top, left] * (1 - across) + old[top, right] * across
        lower = old[bottom, left] * (1 - across) + old[bottom, right] * across
        result[index] = upper * (1 - down) + lower * down
    return result


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_images_are_within_one_grey_level_of_exact_interpolation(shape, size):
    pixels = image(shape)
    error = np.abs(resize_image(pixels, size) - exact(pixels, size))
    assert error.max() < 0.8  # rounding alone: 0.5


@pytest.mark.parametrize(
    ("shape", "size", "of_image", "of_labels"),
    [(*case, *digests) for case, digests in zip(CASES, DIGESTS, strict=True)],
)
def test_both_are_opencvs_bit_for_bit(shape, size, of_image, of_labels):
    pixels = image(shape)
    assert digest(resize_image(pixels, size)) == of_image
    assert digest(resize_labels(pixels[..., 0], size)) == of_labels


@pytest.mark.slow
def test_both_are_those_of_the_installed_opencv():
    import cv2

    rng = np.random.default_rng(0)
    for _ in range(1000):
        height, width = rng.integers(1, 130, 2)
        size = tuple(np.maximum(1, rng.uniform(0.3, 2.5, 2) * (height, width)).astype(int).tolist())
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        want = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, 3)
        np.testing.assert_array_equal(resize_image(pixels, size), want)
        labels = pixels[..., 0]
        want = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST).reshape(size)
        np.testing.assert_array_equal(resize_labels(labels, size), want)


def test_a_window_is_a_slice_of_the_whole():
    pixels = image((37, 53, 3))
    window = (3, 40, 48, 71)
    for size in ((50, 72), (80, 71), pixels.shape[:2]):
        if size == pixels.shape[:2]:
            window = (3, 20, 30, 53)
        top, left, bottom, right = window
        whole = resize_image(pixels, size)[top:bottom, left:right]
        np.testing.assert_array_equal(resize_image(pixels, size, window), whole)
        whole = resize_labels(pixels[..., 0], size)[top:bottom, left:right]
        np.testing.assert_array_equal(resize_labels(pixels[..., 0], size, window), whole)


def test_the_same_size_gives_a_copy_of_the_same_pixels():
    pixels = image((20, 30, 3))
    resized = resize_image(pixels, (20, 30))
    np.testing.assert_array_equal(resized, pixels)
    assert not np.shares_memory(resized, pixels)


def test_stacks_of_masks_are_resized_one_by_one():
    masks = np.random.default_rng(0).random((3, 20, 30)) < 0.5
    resized = resize_labels(masks, (31, 17))
    assert (resized.dtype, resized.shape) == (np.bool_, (3, 31, 17))
    for mask, one in zip(masks, resized, strict=True):
        np.testing.assert_array_equal(resize_labels(mask, (31, 17)), one)
    assert resize_labels(masks[:0], (31, 17)).shape == (0, 31, 17)


def test_scaled_size_is_mmcvs():
    assert scaled_size((427, 640), (800, 1333)) == (800, 1199)
    assert scaled_size((640, 427), (1333, 800)) == (1199, 800)
    assert scaled_size((100, 1000), (800, 1333)) == (133, 1333)  # the long side decides
    assert scaled_size((512, 683), (2048, 512)) == (512, 683)
    assert scaled_size((1, 4000), (512, 2048)) == (1, 2048)  # mmcv would have no row left


def test_sides_without_pixels_and_windows_outside_are_refused():
    pixels = image((20, 30, 3))
    for resize, array in ((resize_image, pixels), (resize_labels, pixels[..., 0])):
        with pytest.raises(ValueError, match=r"cannot be resized to \(0, 5\): sides are positive"):
            resize(array, (0, 5))
        with pytest.raises(ValueError, match=r"window=\(0, 0, 6, 5\) .* is not inside \(5, 5\)"):
            resize(array, (5, 5), (0, 0, 6, 5))
    with pytest.raises(ValueError, match=r"an image of \(0, 30\) cannot be resized"):
        resize_image(pixels[:0], (5, 5))
