# SPDX-License-Identifier: Apache-2.0
"""Colours of classes over images."""

import numpy as np
from PIL import Image

from mambaout_jax.analysis.segmentation_figures import draw_labelled_images, painted, palette


def test_colours_of_classes_are_distinct_whatever_their_number():
    colors = palette(150)
    assert len({tuple(color) for color in colors}) == 150
    np.testing.assert_array_equal(palette(11), colors[:11])
    steps = np.abs(np.diff(colors.astype(int), axis=0)).sum(axis=1)
    assert steps.min() > 90  # neighbours in the list differ


def test_pixels_are_painted_by_class():
    image = np.full((1, 3, 1), 100, np.uint8)
    found = painted(image, np.array([[0, 1, 255]]), 2)
    expected = np.round(0.6 * palette(2) + 40)
    np.testing.assert_array_equal(found[0, :2], expected)
    np.testing.assert_array_equal(found[0, 2], [40, 40, 40])


def test_labels_stand_beside_their_image(tmp_path):
    image = np.full((2, 8, 4, 3), 200, np.uint8)  # upright: white at both sides
    labels = np.zeros((2, 8, 4), np.uint8)
    draw_labelled_images(image, labels, ("a",), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    color = np.round(0.6 * palette(1)[0] + 80)
    areas = [(pixels == value).all(-1).sum() for value in ((200, 200, 200), color)]
    assert areas == [2 * 240 * 120] * 2
