# SPDX-License-Identifier: Apache-2.0
"""Views of labelled pixels: mmseg's steps written out, and what must hold for every draw."""

import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.config import default_config
from mambaout_jax.data.views.photometric import distort
from mambaout_jax.data.views.resize import resize_image, resize_labels
from mambaout_jax.data.views.segmentation import EvaluationView, TrainingView, groups, is_mixed


def settings(size=32, **changes):
    config = default_config()
    config.task = "segmentation"
    config.data.image_size, config.segmentation.long_side = size, 4 * size
    config.segmentation.photometric = False
    config.segmentation.update(changes)
    return config


def example(height=40, width=60):
    """Every pixel of the image says its class in red; classes are blocks of 8 x 8."""
    rows, columns = np.mgrid[:height, :width] // 8
    labels = ((rows * 13 + columns * 5) % 140).astype(np.uint8)
    image = np.stack([labels, 255 - labels, np.full_like(labels, 77)], -1)
    return {"image": image, "labels": labels}


class Scripted(np.random.Generator):
    """Draws that are given in advance: uniform numbers as they are, whole ones below a limit."""

    def __init__(self, uniform, integers, random=(0.9,)):
        super().__init__(np.random.PCG64())
        self._uniform, self._random = iter(uniform), iter(random)
        self._integers, self.limits = iter(integers), []

    def uniform(self, low, high):
        assert (low, high) == (0.5, 2.0)
        return next(self._uniform)

    def integers(self, limit):
        self.limits.append(limit)
        return next(self._integers)

    def random(self):
        return next(self._random)


# Training


def test_training_takes_mmsegs_steps():
    given = example()
    # Bounds (int(128 * 1.27), int(32 * 1.27)) = (162, 40): the short side is 40 already, at 1.53
    # (195, 48): factor 1.2.
    rng = Scripted([1.53], [9, 31], random=[0.3])
    view = TrainingView(settings())(given, rng)
    assert rng.limits == [48 - 32 + 1, 72 - 32 + 1]
    image = resize_image(given["image"], (48, 72))[9:41, 31:63][:, ::-1]
    labels = resize_labels(given["labels"], (48, 72))[9:41, 31:63][:, ::-1]
    np.testing.assert_array_equal(view["image"], image)
    np.testing.assert_array_equal(view["labels"], labels)
    np.testing.assert_array_equal(view["image_shape"], [32, 32])
    assert [view[name].dtype for name in ("image", "labels", "image_shape")] == [
        np.uint8, np.uint8, np.int32,
    ]  # fmt: skip


class Recorded(np.random.Generator):
    """What mmseg drew, in the order of this view; coins are for the flip and the colours."""

    def __init__(self, uniform, integers):
        super().__init__(np.random.PCG64())
        self._uniform, self._integers = iter(uniform), iter(integers)

    def uniform(self, low, high):
        drawn = next(self._uniform)
        assert low <= drawn <= high
        return drawn

    def integers(self, *limits):
        drawn = next(self._integers)
        assert (0, *limits)[-2] <= drawn < limits[-1]
        return drawn

    def random(self):
        return 0.1


def test_all_steps_together_are_mmsegs_bit_for_bit():
    """SHA-256 of what mmseg 1.2.2's own classes made of this with OpenCV 5.0.0, at full size."""
    rng = np.random.default_rng(9)
    image = rng.integers(0, 256, (300, 420, 3), np.uint8)
    labels = np.kron(rng.integers(0, 150, (6, 9)), np.ones((50, 50), int))[:300, :420]
    labels = labels.astype(np.uint8)
    labels[:, :300] = 7  # so that two crops are drawn again
    labels[rng.random((300, 420)) < 0.1] = 255
    drawn = Recorded(
        # scale; brightness, contrast, saturation
        [1.805373805955127, 26.584327711392483, 1.4182376290487624, 0.5265877344675972],
        [396, 224, 47, 472, 275, 608, -3],  # three crops, hue
    )
    config = settings(512, photometric=True)
    found = TrainingView(config)({"image": image, "labels": labels}, drawn)
    digests = [hashlib.sha256(found[name].tobytes()).hexdigest()[:16] for name in found]
    assert digests[:2] == ["48f4fa4977e564f9", "7cf0fe7abb57f8c9"]
    np.testing.assert_array_equal(found["image_shape"], [512, 512])


def test_smaller_images_are_padded_right_and_below():
    given = example()
    view = TrainingView(settings())(given, Scripted([0.5], [0, 0]))  # bounds (64, 16): 16 x 24
    np.testing.assert_array_equal(view["image_shape"], [16, 24])
    np.testing.assert_array_equal(view["image"][:16, :24], resize_image(given["image"], (16, 24)))
    np.testing.assert_array_equal(
        view["labels"][:16, :24], resize_labels(given["labels"], (16, 24))
    )
    outside = np.ones((32, 32), bool)
    outside[:16, :24] = False
    assert (view["labels"][outside] == 255).all()
    assert (view["image"][outside] == 0).all()


def halves():
    """Left half of class 3, right half of class 9, 32 x 128."""
    labels = np.full((32, 128), 3, np.uint8)
    labels[:, 64:] = 9
    return {"image": np.zeros((32, 128, 3), np.uint8), "labels": labels}


def test_a_crop_that_one_class_fills_is_drawn_again():
    rng = Scripted([1.0], [0, 0, 0, 40, 0, 50, 0, 90])  # shares of class 3: 1, 0.75, 14 of 32
    view = TrainingView(settings())(halves(), rng)
    assert (view["labels"] == 3).mean() == 14 / 32  # exactly 0.75 is too much, as in mmseg


def test_the_eleventh_crop_is_taken_whatever_it_holds():
    rng = Scripted([1.0], [0, 0] * 10 + [0, 1])
    view = TrainingView(settings())(halves(), rng)
    assert (view["labels"] == 3).all()
    assert len(rng.limits) == 22


def test_any_crop_will_do_where_one_class_may_fill_it():
    rng = Scripted([1.0], [0, 0])
    view = TrainingView(settings(max_class_share=1.0))(halves(), rng)
    assert (view["labels"] == 3).all()
    assert len(rng.limits) == 2


def test_is_mixed_counts_labelled_pixels_only():
    labels = np.full((10, 10), 255, np.uint8)
    assert not is_mixed(labels, 0.75)
    labels[0] = 149
    assert not is_mixed(labels, 0.75)
    labels[1, :3] = 0
    assert not is_mixed(labels, 10 / 13)
    assert is_mixed(labels, 10.01 / 13)
    labels[labels == 149] = 254  # the highest of any set
    assert is_mixed(labels, 10.01 / 13)


def test_photometric_changes_come_after_the_flip():
    config = settings(photometric=True)
    config.augment.flip_probability = 1.0
    given = example(32, 40)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        got = TrainingView(config)(given, rng)
        rng = np.random.default_rng(seed)
        plain = settings()
        plain.augment.flip_probability = 1.0
        want = TrainingView(plain)(given, rng)
        height, width = want["image_shape"]
        changed = distort(want["image"][:height, :width], rng)
        np.testing.assert_array_equal(got["image"][:height, :width], changed)
        np.testing.assert_array_equal(got["labels"], want["labels"])


def test_pixels_and_labels_stay_together():
    """Classes are read off the image again, whatever was drawn, but where classes meet."""
    view, rng = TrainingView(settings(64)), np.random.default_rng(0)
    shapes = set()
    for _ in range(40):
        found = view(example(56, 90), rng)
        height, width = shape = tuple(found["image_shape"].tolist())
        red = found["image"][:height, :width, 0]
        labels = found["labels"][:height, :width]
        assert (red == labels).mean() > 0.45
        assert (np.flip(red, 1) == labels).mean() < 0.2
        shapes.add(shape)
    assert len(shapes) > 10


def test_the_same_draws_give_the_same_arrays():
    view = TrainingView(settings(photometric=True))
    one, two = (
        v(example(), np.random.default_rng(7)) for v in (view, pickle.loads(pickle.dumps(view)))
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    other = view(example(), np.random.default_rng(8))
    assert not np.array_equal(one["image"], other["image"])


def test_pillow_images_and_greyscale_will_do():
    given = example()
    config = settings()
    pixels = TrainingView(config)(given, np.random.default_rng(1))
    pillow = {**given, "image": Image.fromarray(given["image"])}
    found = TrainingView(config)(pillow, np.random.default_rng(1))
    np.testing.assert_array_equal(found["image"], pixels["image"])
    config.data.channels = 1
    grey = {**given, "image": Image.fromarray(given["image"][..., 0])}
    found = TrainingView(config)(grey, np.random.default_rng(1))
    np.testing.assert_array_equal(found["image"], pixels["image"][..., :1])
    config.segmentation.photometric = True
    with pytest.raises(ValueError, match=r"data\.channels=1; set .*photometric=False"):
        TrainingView(config)


def test_labels_of_another_size_are_refused():
    given = example()
    given["labels"] = given["labels"][:-1]
    match = r"an image of \(40, 60\) has labels of \(39, 60\)"
    with pytest.raises(ValueError, match=match):
        TrainingView(settings())(given, np.random.default_rng(0))
    with pytest.raises(ValueError, match=match):
        EvaluationView(32, 128)(given)
    given["labels"] = example()["labels"][:, :-1]
    with pytest.raises(ValueError, match=r"an image of \(40, 60\) has labels of \(40, 59\)"):
        EvaluationView(32, 128)(given)


# Evaluation


def test_evaluation_sees_all_of_the_image_and_the_labels_as_they_are():
    given = example(45, 70)
    found = EvaluationView.of(settings())(given)
    np.testing.assert_array_equal(found["image"], resize_image(given["image"], (32, 50)))
    assert found["labels"] is given["labels"]
    assert EvaluationView(32, 40)(given)["image"].shape == (26, 40, 3)  # the long side decides
    assert EvaluationView(32, 40)(example(70, 45))["image"].shape == (40, 26, 3)
    pillow = Image.fromarray(given["image"])
    np.testing.assert_array_equal(EvaluationView(32, 128).pixels(pillow), found["image"])


def test_groups_are_those_of_equal_shapes():
    sizes = np.array([[45, 70], [70, 45], [45, 70], [90, 140], [45, 71]], np.int32)
    numbers = groups(sizes)
    view = EvaluationView(32, 128)
    shapes = {}
    for number, (height, width) in zip(numbers, sizes.tolist(), strict=True):
        found = view(example(height, width))
        shape = found["image"].shape, found["labels"].shape
        assert shapes.setdefault(number, shape) == shape
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == len(set(shapes.values())) == 4
    assert groups(sizes[:0]) == []
