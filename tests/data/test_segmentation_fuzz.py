# SPDX-License-Identifier: Apache-2.0
"""Labelled images of any size, and damaged label files and records: arrays or one sentence."""

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaout_jax.config import default_config
from mambaout_jax.data.sets.ade20k_files import decode_labels, pack, unpack
from mambaout_jax.data.views.resize import resize_image, resize_labels, scaled_size
from mambaout_jax.data.views.segmentation import EvaluationView, TrainingView

pytestmark = pytest.mark.slow

MANY = settings(max_examples=500, deadline=None, derandomize=True, database=None)
SIDES = st.one_of(st.integers(1, 90), st.sampled_from([1, 2, 400, 1500]))


def example(height, width, seed):
    """The first channel says the class; runs of one class, one pixel in six without any."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 150, (height, -(-width // 7)), np.uint8), 7, 1)[:, :width]
    labels = np.where(rng.random((height, width)) < 1 / 6, np.uint8(255), labels)
    return {"image": np.stack([labels, labels // 2, 255 - labels], -1), "labels": labels}


@MANY
@given(
    height=SIDES,
    width=SIDES,
    size=st.integers(1, 64),
    aspect=st.integers(1, 4),
    low=st.floats(0.01, 2),
    more=st.floats(0, 3),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_training_gives_squares_of_the_image(height, width, size, aspect, low, more, share, seed):
    config = default_config()
    config.task = "segmentation"
    config.data.image_size, config.segmentation.long_side = size, aspect * size
    config.segmentation.scale = (low, low + more)
    config.segmentation.max_class_share = share
    given_example = example(height, width, seed)
    before = {name: array.copy() for name, array in given_example.items()}
    for photometric in (False, True):
        config.segmentation.photometric = photometric
        found = TrainingView(config)(given_example, np.random.default_rng(seed))
        image, labels = found["image"], found["labels"]
        h, w = found["image_shape"].tolist()
        assert (image.shape, labels.shape) == ((size, size, 3), (size, size))
        assert image.dtype == labels.dtype == np.uint8
        assert 1 <= h <= size
        assert 1 <= w <= size
        assert (labels[h:] == 255).all()
        assert (labels[:, w:] == 255).all()
        assert not image[h:].any()
        assert not image[:, w:].any()
        assert set(np.unique(labels)) <= {*np.unique(before["labels"]).tolist(), 255}
    for name, array in before.items():
        np.testing.assert_array_equal(given_example[name], array)


@MANY
@given(height=SIDES, width=SIDES, size=st.integers(1, 80), aspect=st.integers(1, 4))
def test_evaluation_fills_its_bounds(height, width, size, aspect):
    found = EvaluationView(size, aspect * size)(example(height, width, 0))
    h, w, _ = found["image"].shape
    assert min(h, w) <= size
    assert max(h, w) <= aspect * size
    assert max(h, w) == aspect * size or min(h, w) == size
    assert found["labels"].shape == (height, width)
    assert scaled_size((height, width), (size, aspect * size)) == (h, w)


@MANY
@given(data=st.data(), height=SIDES, width=SIDES)
def test_a_window_is_what_slicing_gives(data, height, width):
    size = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    bottom, right = (
        data.draw(st.integers(top + 1, size[0])),
        data.draw(st.integers(left + 1, size[1])),
    )
    pixels = example(height, width, 1)["image"]
    whole = resize_image(pixels, size)
    assert whole.min() >= pixels.min()
    assert whole.max() <= pixels.max()
    window = top, left, bottom, right
    found = resize_image(pixels, size, window)
    np.testing.assert_array_equal(found, whole[top:bottom, left:right])
    labels = pixels[..., 0]
    whole = resize_labels(labels, size)
    np.testing.assert_array_equal(
        resize_labels(labels, size, window), whole[top:bottom, left:right]
    )


def label_file(mode):
    ids = np.random.default_rng(0).integers(0, 151, (32, 32), np.uint8)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette([i % 256 for i in range(768)])
    elif mode == "RGB":
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


FILES = {mode: label_file(mode) for mode in ("L", "P", "RGB")}


@settings(MANY, max_examples=2000)
@given(data=st.data(), mode=st.sampled_from(list(FILES)))
def test_a_mutated_label_file_is_labels_or_a_sentence(data, mode):
    content = bytearray(FILES[mode])
    for _ in range(data.draw(st.integers(0, 4))):
        place = st.one_of(st.integers(0, 40), st.integers(0, len(content) - 1))
        content[data.draw(place)] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    refused, began = "some.file", time.perf_counter()
    try:
        labels = decode_labels(content, "some.file")
        assert labels.dtype == np.uint8
        assert labels.ndim == 2
        assert ((labels < 150) | (labels == 255)).all()
    except ValueError as error:
        refused = str(error)
    assert "some.file" in refused
    assert "\n" not in refused
    assert time.perf_counter() - began < 5


@MANY
@given(data=st.data(), image=st.binary(max_size=40), labels=st.binary(max_size=40))
def test_a_mutated_record_is_its_files_or_a_sentence(data, image, labels):
    whole = pack("ADE_val_00000001", image, labels)
    assert unpack(whole) == ("ADE_val_00000001", image, labels)
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    refused = "a record"
    try:
        _, one, two = unpack(content)
        assert one + two == content.partition(b"\n")[2]
    except ValueError as error:
        refused = str(error)
    assert "record" in refused
