# SPDX-License-Identifier: Apache-2.0
"""Detection and segmentation are built and loaded in one way; each is tested by itself, too."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.config import default_config
from mambaout_jax.heads.mask_rcnn import Detector
from mambaout_jax.heads.upernet import Segmenter
from mambaout_jax.tasks.detection import Detection
from mambaout_jax.tasks.segmentation import Segmentation

TASKS = {Detection: Detector, Segmentation: Segmenter}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_builds_its_own_model_for_its_classes(task):
    model = task(default_config(), ("cat", "dog")).build("mambaout_micro")
    assert type(model) is TASKS[task]
    assert model.num_classes == 2


@pytest.mark.parametrize("task", TASKS)
def test_a_set_of_other_classes_is_refused(task):
    def classes(*names):
        return types.SimpleNamespace(class_names=names)

    named = task(default_config(), ("cat", "dog"))
    assert named.aligned(classes("cat", "dog")).class_names == ("cat", "dog")
    for names in (("dog", "cat"), ("cat",)):
        with pytest.raises(
            ValueError, match=r"classes are not those of the data.*on these classes"
        ):
            named.aligned(classes(*names))
    unnamed = task(default_config(), ("class 0", "class 1"))
    assert unnamed.aligned(classes("dog", "cat")).class_names == ("dog", "cat")
    with pytest.raises(ValueError, match="classes are not those of the data"):
        unnamed.aligned(classes("cat"))


@pytest.mark.parametrize("task", TASKS)
def test_padding_is_zero_after_normalising(task):
    config = default_config()
    images = jnp.full((2, 6, 8, 3), 200, jnp.uint8)
    batch = {"image": images, "image_shape": jnp.asarray([[6, 8], [4, 5]])}
    inside = np.zeros((2, 6, 8, 1))
    inside[0], inside[1, :4, :5] = 1, 1
    value = (200 / 255 - np.asarray(config.data.mean)) / np.asarray(config.data.std)
    found = task(config, ("cat",)).normalised(batch)
    np.testing.assert_allclose(found, inside * value, rtol=1e-5)
    whole = task(config, ("cat",)).normalised({"image": images})
    np.testing.assert_allclose(whole, np.broadcast_to(value, images.shape), rtol=1e-5)
