# SPDX-License-Identifier: Apache-2.0
"""What dense models are compared on."""

import numpy as np
import pytest

from mambaout_jax.benchmarks.dense_inputs import make_inputs


def test_objects_lie_in_their_images_and_masks_in_their_boxes():
    inputs = make_inputs("detection", (40, 64), 2, "float32")
    assert inputs.images.shape == (2, 40, 64, 3)
    assert inputs.boxes.shape == (2, 100, 4)
    assert inputs.masks.shape == (2, 100, 40, 64)
    assert (inputs.boxes >= 0).all()
    assert (inputs.boxes <= [64, 40, 64, 40]).all()
    assert inputs.labels.min() >= 0
    assert inputs.labels.max() < inputs.classes == 80
    x1, y1, x2, y2 = inputs.boxes[1, 7]
    rows, columns = np.nonzero(inputs.masks[1, 7])
    assert rows.size == pytest.approx(np.pi / 4 * (x2 - x1) * (y2 - y1), rel=0.1)
    assert y1 - 0.5 <= rows.min()
    assert rows.max() <= y2 - 0.5
    assert x1 - 0.5 <= columns.min()
    assert columns.max() <= x2 - 0.5


def test_pixels_have_labels_and_inputs_are_always_the_same():
    first, second = (make_inputs("segmentation", (8, 12), 3, "bfloat16") for _ in range(2))
    assert first.labels.shape == (3, 8, 12)
    assert first.labels.max() < first.classes == 150
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
