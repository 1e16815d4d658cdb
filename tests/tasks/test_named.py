# SPDX-License-Identifier: Apache-2.0
"""Names of classes: those of the data, those that weights bring, and numbers where they do not."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.config import default_config
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.tasks.augment import normalise
from mambaout_jax.tasks.classification import Classification
from mambaout_jax.tasks.named import names_of_weights


@pytest.mark.parametrize(
    ("names", "expected", "warnings"),
    [
        (("cat", "dog"), ("cat", "dog"), []),
        (None, ("class 0", "class 1"), []),
        (
            ("cat", "dog", "cow"),
            ("class 0", "class 1"),
            ["w.npz names 3 classes, and the model has 2: they are called by their numbers"],
        ),
    ],
)
def test_names_of_another_number_are_not_believed(caplog, names, expected, warnings):
    preprocessing = Preprocessing.of(default_config().data)
    preprocessing = dataclasses.replace(preprocessing, class_names=names)
    assert names_of_weights("w.npz", preprocessing, 2) == expected
    assert [record.getMessage() for record in caplog.records] == warnings


def test_a_task_knows_whether_its_classes_are_named():
    assert Classification(default_config(), ("cat", "class 1")).are_named
    assert not Classification(default_config(), ("class 0", "class 1")).are_named


def test_images_are_drawn_as_they_were(rng):
    config = default_config()
    images = rng.integers(0, 256, (2, 5, 4, 3), np.uint8)
    normalised = normalise(jnp.asarray(images), config.data.mean, config.data.std)
    pixels = Classification(config, ("cat",)).pixels(normalised)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, images)
