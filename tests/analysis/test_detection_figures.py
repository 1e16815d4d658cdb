# SPDX-License-Identifier: Apache-2.0
"""Pictures of objects: what is drawn where; tables by class."""

import csv

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.analysis.detection_figures import (
    PICTURE_SIDE,
    draw_class_precision,
    draw_pictures,
    draw_precision,
    picture_objects,
    write_class_precision,
)
from mambaout_jax.analysis.figures import COLORS

SIDE = PICTURE_SIDE


def rgb(label):
    return np.frombuffer(bytes.fromhex(COLORS[label][1:]), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_are_tinted_and_boxes_outlined_in_the_colour_of_their_class(channels):
    image = np.full((40, 80, channels), 200, np.uint8)
    masks = np.zeros((1, 40, 80), bool)
    masks[0, 10:20, 30:60] = True
    picture = picture_objects(image, np.float32([[30, 10, 60, 20]]), masks, np.asarray([2]), [""])
    assert picture.shape == (SIDE // 2, SIDE, 3)
    blend = 0.55 * 200 + 0.45 * rgb(2)
    np.testing.assert_allclose(picture[60, 180], blend, atol=1)  # 4 pixels for one
    np.testing.assert_array_equal(picture[60, 120], rgb(2))
    np.testing.assert_array_equal(picture[20, 40], 200)


def test_a_text_stands_above_its_box_or_inside_at_the_edge():
    image, none = np.zeros((320, 320, 3), np.uint8), np.zeros((2, 320, 320), bool)
    boxes = np.float32([[50, 100, 90, 140], [200, 0, 250, 40]])
    picture = picture_objects(image, boxes, none, np.asarray([0, 1]), ["seven", "one"])
    white = picture.min(axis=-1) > 150  # neither colour is that pale
    rows = np.flatnonzero(white[:, 40:120].any(axis=1))
    assert 85 < rows.min() < rows.max() < 100
    rows = np.flatnonzero(white[:, 190:260].any(axis=1))
    assert 0 <= rows.min() < rows.max() < 15


def test_an_image_without_objects_is_itself():
    image = np.random.default_rng(0).integers(0, 256, (SIDE, 200, 3), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros((0, SIDE, 200), bool), np.zeros(0, int)
    np.testing.assert_array_equal(picture_objects(image, *none, []), image)


def test_pictures_of_two_orientations_are_drawn_together(tmp_path):
    pictures = [np.full((SIDE, 100, 3), 10, np.uint8), np.full((100, SIDE, 3), 200, np.uint8)]
    draw_pictures(pictures, ["tall", "wide"], tmp_path / "grid.png")
    drawn = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    for picture in pictures:
        here = (drawn == picture[0, 0]).all(axis=-1)
        assert here.any(axis=1).sum() == picture.shape[0]
        assert here.any(axis=0).sum() == picture.shape[1]


def test_precision_is_drawn_and_written(tmp_path):
    precision = np.full((10, 101, 3), 0.5)
    precision[:, :, 1] = -1
    draw_precision({"box": precision, "mask": np.full((10, 101, 1), -1.0)}, tmp_path / "curves.png")
    by_class = {"box AP": np.asarray([0.25, np.nan, 0.5]), "mask AP": np.asarray([0.1, np.nan, 1])}
    names = ("eins", "$zwei$", "größe")
    draw_class_precision(names, by_class, tmp_path / "bars.png")
    for name in ("curves", "bars"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5
    write_class_precision(names, np.asarray([4, 0, 2]), by_class, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["class", "objects", "box AP", "mask AP"],
            ["eins", "4", "25.00", "10.00"],
            ["$zwei$", "0", "", ""],
            ["größe", "2", "50.00", "100.00"],
        ]
