# SPDX-License-Identifier: Apache-2.0
"""Crops and views against closed forms, numpy slices, sizes worked out by hand, and timm's."""

import collections
import json
import math
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from support.places import GOLDENS
from support.timm_operations import from_timm

from mambaout_jax.config import IMAGENET_MEAN, default_config
from mambaout_jax.data.views import crops, opencv
from mambaout_jax.data.views.crops import (
    EvaluationView,
    TrainingView,
    color_jitter,
    evaluation_view,
    random_resized_crop_box,
    shift,
)
from mambaout_jax.data.views.rand_augment import NAMES
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.settings import INTERPOLATIONS


def noise(rng, width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def crop_config(crop, **augment):
    config = default_config()
    config.data.image_size = 16
    config.augment.crop = crop
    config.augment.flip_probability = 0.0
    config.augment.update(augment)
    return config


def view_of(config, image, seed=0):
    example = {"image": image, "label": 3}
    return TrainingView(config)(example, np.random.default_rng(seed))["image"]


# Worked out by hand from torchvision's rules: the longer side is truncated, the offset rounded half
# to even. (image width, height), size, crop fraction -> resized (width, height), (left, top)
VIEWS = [
    ((37, 53), 20, 1.0, (20, 28), (0, 4)),  # portrait: 20 * 53 / 37 = 28.65; 8 / 2 = 4
    ((53, 37), 20, 1.0, (28, 20), (4, 0)),  # landscape
    ((41, 60), 24, 0.95, (25, 36), (0, 6)),  # 24 / 0.95 = 25.26; 36.59; 1 / 2 = 0.5 -> 0
    ((60, 41), 21, 0.875, (35, 24), (7, 2)),  # 35.12; 14 / 2 = 7; 3 / 2 = 1.5 -> 2
    ((8, 8), 32, 1.0, (32, 32), (0, 0)),  # enlarged
    ((500, 375), 224, 0.875, (341, 256), (58, 16)),  # 117 / 2 = 58.5 -> 58
]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("image_size", "size", "fraction", "resized", "offset"), VIEWS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view_follows_torchvision(
    rng, image_size, size, fraction, resized, offset, interpolation, mode
):
    image = noise(rng, *image_size, mode)
    whole = image.resize(resized, getattr(Image.Resampling, interpolation.upper()))
    left, top = offset
    want = np.asarray(whole).reshape(resized[1], resized[0], -1)[
        top : top + size, left : left + size
    ]
    got = evaluation_view(image, size, crop_fraction=fraction, interpolation=interpolation)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [(5, 400), (400, 5), (120, 1601)])
@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.03])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view_of_extreme_proportions_is_the_same_up_to_rounding(
    rng, size, fraction, interpolation, monkeypatch
):
    # Pillow resizes the axes one after the other, in an order of its own, and clips in between:
    # in the middle of the range nothing is clipped.
    image = noise(rng, *size).point(lambda value: 96 + value // 4)
    how = {"crop_fraction": fraction, "interpolation": interpolation}
    got = evaluation_view(image, 16, **how)
    monkeypatch.setattr(crops, "_LONGEST", math.inf)
    want = evaluation_view(image, 16, **how)
    np.testing.assert_allclose(got.astype(int), want.astype(int), atol=1)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_evaluation_view_of_a_line_is_small_work(size, monkeypatch):
    image = Image.new("RGB", size, (1, 2, 3))
    monkeypatch.setattr(Image.Image, "crop", None)  # of an image of 6.7 million rows
    assert (evaluation_view(image, 224) == (1, 2, 3)).all()


@pytest.mark.parametrize("fraction", [0.0, 1.01])
def test_evaluation_view_refuses_a_crop_larger_than_the_image(rng, fraction):
    with pytest.raises(ValueError, match=f"crop_fraction={fraction}.*above 0 and at most 1"):
        evaluation_view(noise(rng, 9, 9), 8, crop_fraction=fraction)


def test_evaluation_view_of_an_example_follows_the_preprocessing(rng):
    image = noise(rng, 41, 60)
    view = EvaluationView(Preprocessing(24, crop_fraction=0.95, interpolation="bilinear"))
    example = view({"image": image, "label": 7})
    want = np.asarray(image.resize((25, 36), Image.Resampling.BILINEAR))[6:30, 0:24]
    np.testing.assert_array_equal(example["image"], want)
    assert example["label"] == 7
    assert example["label"].dtype == np.int32


def boxes(width, height, scale, ratio, count=20_000):
    rng = np.random.default_rng(1)
    draws = [
        random_resized_crop_box(width, height, scale=scale, ratio=ratio, rng=rng)
        for _ in range(count)
    ]
    return np.array(draws, dtype=np.float64).T


def test_random_resized_crop_draws_area_and_ratio_from_their_distributions():
    # With at most half the area of a square, every ratio fits and no draw is rejected.
    low, high = 0.1, 0.5
    left, top, right, bottom = boxes(1000, 1000, (low, high), (3 / 4, 4 / 3))
    area = (right - left) * (bottom - top) / 1e6
    log_ratio = np.log((right - left) / (bottom - top))
    reach = math.log(4 / 3)
    deviation = (high - low) / math.sqrt(12)
    standard_errors = 4 / math.sqrt(area.size)  # four of them, in units of the deviation
    assert abs(area.mean() - (low + high) / 2) < standard_errors * deviation
    assert abs(area.std() - deviation) < standard_errors * deviation
    assert abs(log_ratio.mean()) < standard_errors * reach / math.sqrt(3)
    assert abs(log_ratio.std() - reach / math.sqrt(3)) < standard_errors * reach / math.sqrt(3)
    # Position: uniform on 0..1000 - w, so its mean share of that range is a half.
    for start, length in ((left, right - left), (top, bottom - top)):
        share = start / (1000 - length)
        assert abs(share.mean() - 0.5) < standard_errors / math.sqrt(12)
        assert share.min() < 0.001
        assert share.max() > 0.999


def test_random_resized_crop_rejects_what_does_not_fit():
    # With scale = 1 only ratio 1 fits a square. Few tries draw it; the fallback is the same box.
    drawn = boxes(100, 100, (1.0, 1.0), (3 / 4, 4 / 3), count=500)
    np.testing.assert_array_equal(drawn.T, np.tile([0, 0, 100, 100], (500, 1)))


@pytest.mark.parametrize(("width", "height"), [(7, 5), (1, 1), (3, 200), (200, 3), (2, 2)])
def test_random_resized_crop_stays_inside_the_image(width, height):
    left, top, right, bottom = boxes(width, height, (0.08, 1.0), (3 / 4, 4 / 3), count=2000)
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    assert (right - left).min() >= 1
    assert (bottom - top).min() >= 1


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 1000), (0, 433, 100, 566)),  # too narrow: 100 / (3 / 4) = 133.3; 867 // 2 = 433
        ((1000, 100), (433, 0, 566, 100)),  # too wide: 100 * 4 / 3 = 133.3
    ],
)
def test_random_resized_crop_falls_back_to_the_largest_central_crop(size, box):
    # scale = 1 of an image whose ratio lies outside the range: no try fits.
    rng = np.random.default_rng(0)
    got = random_resized_crop_box(*size, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
    assert got == box


def test_training_view_resizes_the_drawn_box(rng):
    image = noise(rng, 50, 40)
    config = crop_config("random_resized", scale=(0.2, 0.6))
    seed = 5
    box = random_resized_crop_box(
        50, 40, scale=(0.2, 0.6), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(seed)
    )
    want = np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(view_of(config, image, seed), want)


def test_training_view_draws_either_interpolation(rng):
    image = noise(rng, 40, 30)
    config = crop_config("none", random_interpolation=True)
    names = {
        evaluation_view(image, 16, interpolation=name).tobytes(): name
        for name in ("bilinear", "bicubic")
    }
    drawn = collections.Counter(
        names[view_of(config, image, seed).tobytes()] for seed in range(400)
    )
    assert abs(drawn["bilinear"] - 200) < 4 * math.sqrt(400 / 4)
    assert drawn.total() == 400


def test_shift_moves_and_fills_with_zeros(rng):
    image = rng.integers(1, 256, (6, 7, 3), dtype=np.uint8)
    padded = np.pad(image, ((5, 5), (5, 5), (0, 0)))
    for down in range(-5, 6):
        for right in range(-5, 6):
            want = padded[5 - down : 11 - down, 5 - right : 12 - right]
            np.testing.assert_array_equal(shift(image, down, right), want)


def test_training_view_shifts_uniformly_within_reach():
    # One white pixel in the middle tells the translation.
    pixels = np.zeros((16, 16), np.uint8)
    pixels[8, 8] = 255
    image = Image.fromarray(pixels)
    config = crop_config("shift", shift_pixels=2)
    count = 2000
    drawn = collections.Counter(
        tuple(np.argwhere(view_of(config, image, seed)[..., 0])[0] - 8) for seed in range(count)
    )
    assert set(drawn) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    expected = count / 25
    assert max(abs(n - expected) for n in drawn.values()) < 4.5 * math.sqrt(expected)


def test_training_view_none_is_the_evaluation_view(rng):
    image = noise(rng, 33, 21)
    np.testing.assert_array_equal(view_of(crop_config("none"), image), evaluation_view(image, 16))


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, 0), (1.0, 300), (0.25, 75)])
def test_training_view_flips_by_probability(rng, probability, flipped):
    image = noise(rng, 16, 16)
    straight = np.asarray(image)
    config = crop_config("none", flip_probability=probability)
    views = [view_of(config, image, seed) for seed in range(300)]
    mirrored = [np.array_equal(view, straight[:, ::-1]) for view in views]
    assert all(
        mirror or np.array_equal(view, straight)
        for view, mirror in zip(views, mirrored, strict=True)
    )
    deviation = math.sqrt(300 * probability * (1 - probability))
    assert abs(sum(mirrored) - flipped) <= 4 * deviation


def test_training_view_keeps_the_label(rng):
    example = {"image": noise(rng, 20, 20, "L"), "label": 6}
    view = TrainingView(crop_config("none"))(example, rng)
    assert (view["label"], view["label"].dtype) == (6, np.int32)
    assert view["image"].shape == (16, 16, 1)


def test_squash_resizes_both_sides_alike(rng):
    from mambaout_jax.data.views.crops import evaluation_view

    image = Image.fromarray(rng.integers(0, 256, (30, 50, 3), np.uint8))
    expected = image.resize((20, 20), Image.Resampling.BICUBIC).crop((2, 2, 18, 18))
    view = evaluation_view(image, 16, crop_fraction=0.8, crop_mode="squash")
    np.testing.assert_array_equal(view, np.asarray(expected))


class Replay(np.random.Generator):
    """A generator whose draws are given, in lists by the name of the function that draws."""

    def __init__(self, **draws):
        super().__init__(np.random.PCG64())
        self.draws = {name: list(values) for name, values in draws.items()}

    def uniform(self, *arguments):
        return self.draws["uniform"].pop(0)

    def integers(self, *arguments):
        return self.draws["integers"].pop(0)

    def random(self):
        return self.draws["random"].pop(0)

    def normal(self, *arguments):
        return self.draws["normal"].pop(0)

    def permutation(self, *arguments):
        return self.draws["permutation"].pop(0)


def replayed(draws):
    """What the training view draws, from what timm's transform drew for the same view."""
    uniform = draws["uniform"]
    integers = [*draws["corner"], INTERPOLATIONS.index(draws["interpolation"])]
    random, normal = [0.0 if draws["flip"] else 0.9], []
    for drawn in draws["operations"]:
        random.append(0.9 if drawn is None else 0.1)
        if drawn is not None:
            operation = from_timm(*drawn)
            random.append(0.1 if operation.negative else 0.9)
            normal.append(operation.magnitude)
            interpolation = INTERPOLATIONS.index(operation.interpolation)
            integers += [NAMES.index(operation.name), interpolation]
    return Replay(uniform=uniform, integers=integers, random=random, normal=normal)


def test_training_view_is_timms_on_its_draws():
    config = default_config()
    config.data.image_size, config.data.mean = 24, IMAGENET_MEAN
    config.augment.random_interpolation = True
    config.augment.rand_augment_layers = 2
    view = TrainingView(config)
    with np.load(GOLDENS / "recipe" / "views.npz") as arrays:
        image, outputs = Image.fromarray(arrays["image"]), arrays["outputs"]
        draws = json.loads(str(arrays["draws"]))
    assert len(draws) == 24
    seen = collections.Counter()
    for drawn, want in zip(draws, outputs, strict=True):
        rng = replayed(drawn)
        example = {"image": image, "label": 0, "replaced": False}
        np.testing.assert_array_equal(view(example, rng)["image"], want)
        assert not any(rng.draws.values())
        seen[drawn["flip"], drawn["interpolation"]] += 1
        seen[sum(operation is not None for operation in drawn["operations"])] += 1
    assert len(seen) == 4 + 3  # flips and interpolations; no, one and two operations


def grey(pixels):
    return (pixels * (0.299, 0.587, 0.114)).sum(-1, keepdims=True)


JITTERS = (
    lambda x, factor: factor * x,
    lambda x, factor: grey(x).mean() + factor * (x - grey(x).mean()),
    lambda x, factor: grey(x) + factor * (x - grey(x)),
)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_color_jitter_changes_brightness_contrast_and_saturation(rng, order):
    image = noise(rng, 12, 9)
    factors = (0.7, 1.2, 0.8)
    got = color_jitter(image, 0.4, Replay(permutation=[order], uniform=factors))
    want = np.asarray(image, np.float64)
    for kind, factor in zip(order, factors, strict=True):
        want = np.clip(JITTERS[kind](want, factor), 0, 255)
    np.testing.assert_allclose(np.asarray(got), want, atol=3)  # each step rounds


def test_training_view_jitters_each_image_on_its_own(rng):
    image = Image.new("RGB", (16, 16), (100, 100, 100))
    config = crop_config("none", color_jitter=0.4)
    levels = [int(view_of(config, image, seed)[0, 0, 0]) for seed in range(400)]
    assert min(levels) >= 59
    assert max(levels) <= 140
    # Of a grey image only brightness changes; it is uniform, rounded down.
    deviation = 80 / math.sqrt(12)
    assert abs(np.mean(levels) - 99.5) < 4 * deviation / math.sqrt(400)
    assert abs(np.std(levels) - deviation) < 4 * deviation / math.sqrt(400)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("as_array", [True, False])
def test_training_view_crops_by_opencv(rng, mode, as_array):
    image = noise(rng, 50, 40, mode)
    pixels = np.asarray(image).reshape(40, 50, -1)
    config = crop_config("random_resized", scale=(0.2, 0.6))
    config.data.decoder = "opencv"
    if mode == "L":
        config.data.update(channels=1, mean=(0.5,), std=(0.5,))
    for seed in range(5):
        left, top, right, bottom = random_resized_crop_box(
            50, 40, scale=(0.2, 0.6), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(seed)
        )
        side = min(right - left, bottom - top)
        shrinks = cv2.INTER_AREA if side >= 24 else cv2.INTER_LINEAR
        how = shrinks if side >= 16 else cv2.INTER_CUBIC
        want = cv2.resize(pixels[top:bottom, left:right], (16, 16), interpolation=how)
        got = view_of(config, pixels if as_array else image, seed)
        np.testing.assert_array_equal(got, want.reshape(16, 16, -1))


def test_training_view_takes_decoded_arrays_without_opencv(rng):
    image = noise(rng, 50, 40)
    for crop in ("random_resized", "none", "shift"):
        config = crop_config(crop)
        want = view_of(config, image, 3)
        np.testing.assert_array_equal(view_of(config, np.asarray(image), 3), want)


def test_training_view_tells_at_once_that_opencv_is_missing(monkeypatch):
    config = crop_config("random_resized")
    config.data.decoder = "opencv"
    opencv._cv2.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        TrainingView(config)
