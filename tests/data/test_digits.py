# SPDX-License-Identifier: Apache-2.0
"""The embedded digits against scikit-learn's own arrays."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mambaout_jax.data.sets import digits as digits_file
from mambaout_jax.data.sets.digits import Digits


def pixels_and_labels(split, channels=1):
    source = Digits(split, channels)
    examples = [source[index] for index in range(len(source))]
    return np.stack([np.asarray(e["image"]) for e in examples]), [e["label"] for e in examples]


def test_digits_holds_out_a_fifth_of_each_class():
    per_class = np.bincount(load_digits().target)  # 178, 182, 177, ...
    _, train = pixels_and_labels("train")
    _, validation = pixels_and_labels("validation")
    assert (len(train), len(validation)) == (1438, 359)
    np.testing.assert_array_equal(np.bincount(validation), [36, 36, 35, 37, 36, 36, 36, 36, 35, 36])
    np.testing.assert_array_equal(np.bincount(train) + np.bincount(validation), per_class)


def test_digits_splits_share_no_image_and_lose_none():
    digits = load_digits()
    want = {}
    for image, label in zip(digits.images, digits.target, strict=True):
        key = (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        want[key] = want.get(key, 0) + 1
    got = {}
    for split in ("train", "validation"):
        for image, label in zip(*pixels_and_labels(split), strict=True):
            key = (image.tobytes(), label)
            got[key] = got.get(key, 0) + 1
    assert got == want
    assert max(want.values()) == 1  # no image occurs twice, so equal counts mean disjoint splits


def test_digits_split_never_moves():
    _, labels = pixels_and_labels("validation")
    assert labels[:12] == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]
    images, _ = pixels_and_labels("validation")
    assert int(images.astype(np.int64).sum()) == 1776711


def test_digits_spread_their_levels_over_eight_bits():
    images, _ = pixels_and_labels("train")
    assert images.shape[1:] == (8, 8)
    levels = np.unique(images)
    assert len(levels) == 17
    np.testing.assert_allclose(levels, np.arange(17) * 255 / 16, atol=0.5)
    assert (levels[0], levels[-1]) == (0, 255)


def test_digits_repeat_the_grey_value_in_three_channels():
    grey, _ = pixels_and_labels("validation", 1)
    colour, _ = pixels_and_labels("validation", 3)
    np.testing.assert_array_equal(colour, np.repeat(grey[..., None], 3, axis=-1))


def test_digits_name_their_classes():
    source = Digits("train")
    assert source.class_names == tuple("0123456789")
    assert source.num_classes == 10
    with pytest.raises(IndexError):
        source[len(source)]


def test_the_file_and_the_package_give_the_same_digits(monkeypatch):
    from_file = Digits("train").fingerprint()
    monkeypatch.setattr(digits_file.importlib.util, "find_spec", lambda name: None)
    assert Digits("train").fingerprint() == from_file
