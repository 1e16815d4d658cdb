# SPDX-License-Identifier: Apache-2.0
"""Data of the grid: every answer follows from what is seen, and splits share nothing."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mambaout_jax.ablation.tasks import TOKEN_TASKS, UNSCORED, copying, digits, next_pixel, recall

GENERATED = {
    "copying": {"length": 40, "items": 3, "symbols": 4},
    "recall": {"length": 41, "pairs": 3, "keys": 6, "values": 5},
    "matching": {"side": 40, "patch": 4, "classes": 3},
    "other_scan": {"side": 40, "patch": 4, "classes": 3},
}


def build(name, **changes):
    return TOKEN_TASKS[name](**(GENERATED[name] | {"train": 60, "test": 20} | changes))


def test_digits_are_the_scans_pixel_by_pixel():
    task, source = digits(), load_digits()
    assert (len(task.train.targets), len(task.test.targets)) == (1438, 359)
    assert (task.grid, task.length, task.features, task.dense) == ((8, 8), 64, 1, False)
    scans = np.concatenate((task.train.inputs, task.test.inputs)).reshape(-1, 64)
    scans = np.rint((scans + 1) * 8)
    labels = np.concatenate((task.train.targets, task.test.targets))
    found = sorted((*scan, label) for scan, label in zip(scans.tolist(), labels, strict=True))
    assert found == sorted(
        (*scan, label) for scan, label in zip(source.data.tolist(), source.target, strict=True)
    )


def test_next_pixel_sees_the_pixels_before_and_never_the_answer():
    task = next_pixel()
    assert task.autoregressive
    assert task.dense
    for inputs, targets in (task.train, task.test):
        sequences = inputs[:, 0]
        assert (sequences[:, 0] == 17).all()
        np.testing.assert_array_equal(sequences[:, 1:], targets[:, :-1])
    source = np.concatenate((task.train.targets, task.test.targets))
    assert sorted(source.tolist()) == sorted(load_digits().data.astype(int).tolist())


def test_copying_asks_for_the_symbols_in_order():
    task = build("copying")
    assert (task.length, task.vocabulary, task.num_classes) == (40, 6, 4)
    for tokens, targets in zip(task.train.inputs[:, 0].tolist(), task.train.targets, strict=True):
        separator = tokens.index(5)
        assert separator == 37
        strewn = [token - 1 for token in tokens[:separator] if token]
        assert strewn == targets[targets != UNSCORED].tolist()
        assert (targets[:separator] == UNSCORED).all()
        assert [token - 1 for token in tokens[separator + 1 :]] == strewn[:-1]  # answers so far


def test_recall_asks_for_the_value_that_came_with_the_key():
    task = build("recall")
    assert (task.length, task.vocabulary, task.num_classes) == (41, 12, 5)
    places = set()
    for tokens, targets in zip(task.train.inputs[:, 0].tolist(), task.train.targets, strict=True):
        value_of = dict(zip(tokens[0:6:2], tokens[1:6:2], strict=True))
        assert len(value_of) == 3
        asked = np.flatnonzero(targets != UNSCORED)
        assert sorted(tokens[i] for i in asked) == sorted(value_of)
        for i in asked:
            assert targets[i] == value_of[tokens[i]] - 7
            if i + 1 < len(tokens):  # the sequence goes on with the answer
                assert tokens[i + 1] == value_of[tokens[i]]
        assert np.count_nonzero(tokens[6:]) == 6 - (asked[-1] == 40)
        places |= set(asked.tolist())
    assert (min(places), max(places)) == (6, 40)


@pytest.mark.parametrize("name", ["matching", "other_scan"])
def test_two_scans_lie_far_apart_and_the_answer_needs_both(name):
    task, source = build(name), load_digits()
    scans = map(tuple, source.data)
    label_of = dict(zip(scans, source.target.tolist(), strict=True))
    assert (task.grid, task.features) == ((10, 10), 16)
    equal = 0
    for patches, target in zip(*task.train, strict=True):
        levels = np.rint((patches + 1) * 8).reshape(10, 10, 4, 4).swapaxes(1, 2).reshape(40, 40)
        assert not levels[:, 10:30].any()  # nothing between the quarters
        left, right = digit_in(levels[:, :10], label_of), digit_in(levels[:, 30:], label_of)
        equal += left == right
        assert max(left, right) < 3
        if name == "matching":
            assert target == (left == right)
            continue
        inked = (levels.reshape(10, 4, 10, 4) > 0).any(axis=(1, 3))
        asked = target.reshape(10, 10)
        assert (asked[inked] != UNSCORED).all()
        for columns, answer in ((slice(0, 5), right), (slice(5, 10), left)):
            scored = asked[:, columns][asked[:, columns] != UNSCORED]
            assert 4 <= scored.size <= 9  # a scan touches 2 x 2 to 3 x 3 patches
            assert set(scored) == {answer}
    assert equal == 30 if name == "matching" else 5 < equal < 35


def digit_in(quarter, label_of):
    """The label of the only scan that lies in a quarter of the canvas."""
    height, width = quarter.shape
    found = {
        label_of[scan]
        for row in range(height - 7)
        for column in range(width - 7)
        if (scan := tuple(quarter[row : row + 8, column : column + 8].ravel())) in label_of
    }
    (digit,) = found
    return digit


@pytest.mark.parametrize("name", ["matching", "other_scan"])
def test_two_scans_are_of_the_split_they_are_shown_in(name):
    task = build(name)
    for split, scans in ((task.train, digits().train), (task.test, digits().test)):
        own = {tuple(scan): 0 for scan in np.rint((scans.inputs + 1) * 8).reshape(-1, 64)}
        for patches in split.inputs:
            levels = np.rint((patches + 1) * 8).reshape(10, 10, 4, 4).swapaxes(1, 2)
            levels = levels.reshape(40, 40)
            digit_in(levels[:, :10], own)  # raises where none of the split's scans is
            digit_in(levels[:, 30:], own)


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_data_follow_the_seed_and_splits_differ(name):
    one, same, other = build(name), build(name), build(name, seed=1)
    for a, b in zip((*one.train, *one.test), (*same.train, *same.test), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.train.inputs != other.train.inputs).any()
    assert (one.train.inputs[:20] != one.test.inputs).any()


def test_chance_is_the_most_frequent_answer():
    task = digits()
    answer = np.bincount(task.train.targets).argmax()
    assert task.chance == np.count_nonzero(task.test.targets == answer) / 359
    levels = next_pixel().test.targets
    assert next_pixel().chance == np.count_nonzero(levels == 0) / levels.size
    assert build("matching").chance == 0.5


def test_what_cannot_be_made_is_an_error():
    with pytest.raises(ValueError, match="side=33 must be at least 32 pixels"):
        build("matching", side=33)
    with pytest.raises(ValueError, match="side=24 must be at least 32 pixels"):
        build("matching", side=24)
    with pytest.raises(ValueError, match="9 different ones cannot be chosen among 4"):
        recall(train=1, test=1, length=60, pairs=9, keys=4, values=3)
    with pytest.raises(ValueError, match="9 different ones cannot be chosen among 4"):
        copying(train=1, test=1, length=13, items=9, symbols=3)
