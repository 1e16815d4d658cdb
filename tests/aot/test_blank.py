# SPDX-License-Identifier: Apache-2.0
"""Data sets without their images give what views and tasks ask of them."""

import numpy as np
import pytest

from mambaout_jax.aot.blank import Blank, open_or_blank
from mambaout_jax.config import default_config


@pytest.mark.parametrize(
    ("source", "split", "count", "classes"),
    [
        ("imagenet", "train", 1_281_167, 1000),
        ("imagenet", "validation", 50_000, 1000),
        ("coco", "train", 117_266, 80),
        ("ade20k", "validation", 2_000, 150),
    ],
)
def test_a_blank_set_has_the_size_of_the_real_one(source, split, count, classes):
    blank = Blank(source, split, "classification", 3)
    assert len(blank) == len(blank.image_sizes) == count
    assert blank.num_classes == len(set(blank.class_names)) == classes


def test_blank_examples_are_those_of_their_task():
    one = Blank("imagenet", "train", "classification", 1)[0]
    assert (one["image"].mode, one["image"].size, one["label"]) == ("L", (640, 480), 0)
    pixels = Blank("ade20k", "train", "segmentation", 3)[7]["labels"]
    assert (pixels.shape, pixels.dtype) == ((480, 640), np.uint8)
    found = Blank("coco", "train", "detection", 3)[5]
    assert found["boxes"].tolist() == [[0, 0, 640, 480]]
    assert found["masks"].all()
    assert found["masks"].shape == (1, 480, 640)
    assert found["image_id"] == 5


def test_a_set_that_is_generated_is_opened():
    data = default_config().data
    data.source = "digits"
    assert len(open_or_blank(data, "train", "classification")) > 1000
    data.source = "folder"
    with pytest.raises(ValueError, match=r"needs the folder: set --config.data.path"):
        open_or_blank(data, "train", "classification")
