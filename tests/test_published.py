# SPDX-License-Identifier: Apache-2.0
"""What published records say of preprocessing."""

import pytest

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.weights.catalog import CATALOG


def test_first_result_is_at_the_size_of_training():
    for weights in CATALOG.values():
        for result in weights.results[:1]:
            assert result.image_size == weights.image_size
            assert result.crop_fraction == weights.crop_fraction


@pytest.mark.parametrize(
    ("key", "image_size", "expected"),
    [
        ("mambaout_femto.in1k", None, (224, 1.0, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", None, (224, 0.95, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", 288, (288, 1.0, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", 256, (256, 0.95, "center")),
        ("mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k", None, (384, 1.0, "squash")),
    ],
)
def test_preprocessing_is_the_published_one_at_its_size(key, image_size, expected):
    found = CATALOG[key].preprocessing(image_size)
    assert (found.image_size, found.crop_fraction, found.crop_mode) == expected
    assert found.interpolation == "bicubic"
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    assert found.class_names == CLASS_NAMES


def test_imagenet_12k_has_its_own_classes_and_no_names():
    weights = CATALOG["mambaout_base_plus_rw.sw_e150_in12k"]
    assert weights.num_classes == 11821
    assert weights.preprocessing().class_names is None
