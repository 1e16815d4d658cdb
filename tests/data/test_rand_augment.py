# SPDX-License-Identifier: Apache-2.0
"""RandAugment: every operation against timm's on the same draws, the draws against their laws."""

import collections
import json
import math

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from support.places import GOLDENS
from support.timm_operations import from_timm

from mambaout_jax.data.views.rand_augment import (
    MOVES,
    NAMES,
    OPERATIONS,
    Operation,
    apply,
    draw,
    posterize,
)

GOLDEN = GOLDENS / "recipe" / "rand_augment.npz"
FILL = (124, 116, 104)


def golden():
    with np.load(GOLDEN) as arrays:
        operations = [from_timm(*drawn) for drawn in json.loads(str(arrays["draws"]))]
        return arrays["image"], list(zip(operations, arrays["outputs"], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_operation_gives_timms_pixels_on_its_draws(name):
    image, cases = golden()
    cases = [(drawn, want) for drawn, want in cases if drawn.name == name]
    assert len(cases) == 4  # magnitudes near 2, 6, 9 and 12
    for drawn, want in cases:
        got = apply(Image.fromarray(image), [drawn], FILL)
        np.testing.assert_array_equal(np.asarray(got), want, err_msg=str(drawn))


def test_goldens_reach_the_ends_of_the_draws():
    image, cases = golden()
    moves = [drawn for drawn, _ in cases if drawn.name in MOVES]
    assert {drawn.interpolation for drawn in moves} == {"bilinear", "bicubic"}
    assert {drawn.negative for drawn in moves} == {True, False}
    assert any(drawn.magnitude > 10 for drawn in moves)
    black = [drawn for drawn, want in cases if not want.any()]
    assert black
    assert {drawn.name for drawn in black} == {"posterize"}
    assert all((want != image).any() for drawn, want in cases if drawn.name != "auto_contrast")


def test_operations_follow_each_other(rng):
    image = rng.integers(0, 256, (7, 20, 3), dtype=np.uint8)
    first = Operation("invert", 9.0, False, "bicubic")
    second = Operation("translate_x", 10.0, True, "bilinear")  # by 0.45 * 20 = 9 to the right
    got = np.asarray(apply(Image.fromarray(image), [first, second], FILL))
    np.testing.assert_array_equal(got[:, 9:], 255 - image[:, :-9])
    np.testing.assert_array_equal(got[:, :9], np.broadcast_to(FILL, got[:, :9].shape))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("strength", "bits"), [(0.2, 4), (0.3, 3), (-0.6, 2), (0.99, 1), (-1, 0)])
def test_posterize_keeps_the_highest_bits_down_to_none(rng, mode, strength, bits):
    shape = (5, 4, 3) if mode == "RGB" else (5, 4)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    got = np.asarray(posterize(Image.fromarray(pixels), strength))
    np.testing.assert_array_equal(got, pixels - pixels % np.int64(2 ** (8 - bits)))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grey_images_change_as_grey_colours(rng, name, negative):
    pixels = rng.integers(0, 256, (12, 10), dtype=np.uint8)
    drawn = [Operation(name, 8.0, negative, "bicubic")]
    grey = apply(Image.fromarray(pixels), drawn, 90)
    colour = apply(Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)), drawn, (90,) * 3)
    assert grey.mode == "L"
    np.testing.assert_array_equal(np.asarray(colour), np.asarray(grey)[..., None].repeat(3, 2))


def test_draws_follow_their_distributions():
    rng, count = np.random.default_rng(3), 6000
    images = [
        draw(rng, layers=3, magnitude=7.0, deviation=0.5, probability=0.4,
             interpolations=("bilinear", "bicubic"))
        for _ in range(count)
    ]  # fmt: skip
    numbers = collections.Counter(map(len, images))
    for number in range(4):
        expected = count * math.comb(3, number) * 0.4**number * 0.6 ** (3 - number)
        assert abs(numbers[number] - expected) < 5 * math.sqrt(expected)
    drawn = [operation for image in images for operation in image]
    names = collections.Counter(operation.name for operation in drawn)
    assert names.keys() == {*OPERATIONS, *MOVES}
    assert scipy.stats.chisquare(list(names.values())).pvalue > 1e-4
    magnitudes = [operation.magnitude for operation in drawn]
    assert scipy.stats.kstest(magnitudes, scipy.stats.norm(7, 0.5).cdf).pvalue > 1e-4
    for fair in (
        [operation.negative for operation in drawn],
        [operation.interpolation == "bicubic" for operation in drawn],
    ):
        assert abs(np.mean(fair) - 0.5) < 5 * 0.5 / math.sqrt(len(drawn))


def test_no_layers_draw_nothing():
    rng = np.random.default_rng(0)
    options = {"magnitude": 9.0, "deviation": 0.5, "interpolations": ("bicubic",)}
    assert draw(rng, layers=0, probability=1.0, **options) == ()
    assert rng.random() == np.random.default_rng(0).random()
    (only,) = draw(rng, layers=1, probability=1.0, **options)
    assert only.interpolation == "bicubic"
