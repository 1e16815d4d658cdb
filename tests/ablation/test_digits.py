# SPDX-License-Identifier: Apache-2.0
"""Tasks made of scans: all of them are used, none is in two splits, labels are where the ink is."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mambaout_jax.ablation.digits import digits, scenes, sequential_digits
from mambaout_jax.ablation.examples import UNSCORED, Sizes


def levels_of(inputs):
    return np.rint((inputs.reshape(len(inputs), 64) + 1) * 8).astype(int)


def test_digits_are_the_scans_each_in_one_split():
    task, source = digits(side=8), load_digits()
    splits = (task.train, task.validation, task.test)
    assert [len(split.targets) for split in splits] == [1150, 288, 359]
    assert (task.grid, task.length, task.features, task.dense) == ((8, 8), 64, 1, False)
    scans = np.concatenate([levels_of(split.inputs) for split in splits])
    labels = np.concatenate([split.targets for split in splits])
    found = sorted((*scan, label) for scan, label in zip(scans.tolist(), labels, strict=True))
    assert found == sorted(
        (*scan, label)
        for scan, label in zip(source.data.astype(int).tolist(), source.target, strict=True)
    )


def test_long_form_shows_the_same_scans_enlarged():
    small, large = digits(side=8), digits(side=24)
    assert large.grid == (24, 24)
    np.testing.assert_array_equal(small.test.targets, large.test.targets)
    means = large.test.inputs.reshape(359, 8, 3, 8, 3).mean(axis=(2, 4))
    x, y = (np.ravel(a) for a in (means, small.test.inputs[..., 0]))
    assert np.corrcoef(x, y)[0, 1] > 0.98


@pytest.mark.parametrize("side", [8, 12])
def test_sequential_digits_are_the_rows_one_after_the_other(side):
    as_map, as_sequence = digits(side=side), sequential_digits(side=side)
    assert as_sequence.autoregressive
    assert as_sequence.grid == (1, side**2)
    np.testing.assert_array_equal(
        as_sequence.test.inputs.reshape(-1, side, side, 1), as_map.test.inputs
    )
    np.testing.assert_array_equal(as_sequence.test.targets[:, -1], as_map.test.targets)
    assert (as_sequence.test.targets[:, :-1] == UNSCORED).all()


def test_a_scene_has_a_scan_of_its_split_in_every_cell_and_labels_under_its_ink():
    task = scenes(sizes=Sizes(8, 3, 8), side=32, patch=2)
    assert (task.grid, task.features, task.num_classes) == ((16, 16), 4, 10)
    for split, scans in ((task.train, digits(side=8).train), (task.test, digits(side=8).test)):
        label_of = {
            tuple(scan): label
            for scan, label in zip(levels_of(scans.inputs), scans.targets, strict=True)
        }
        for patches, targets in zip(split.inputs, split.targets, strict=True):
            levels = np.rint((patches + 1) * 8).reshape(16, 16, 2, 2).swapaxes(1, 2)
            levels, asked = levels.reshape(32, 32).astype(int), targets.reshape(16, 16)
            np.testing.assert_array_equal(
                asked != UNSCORED, levels.reshape(16, 2, 16, 2).mean(axis=(1, 3)) > 4
            )
            for top, left in ((0, 0), (0, 16), (16, 0), (16, 16)):
                cell = levels[top : top + 16, left : left + 16]
                labels = {
                    label_of[scan]
                    for row in range(9)
                    for column in range(9)
                    if (scan := tuple(cell[row : row + 8, column : column + 8].ravel())) in label_of
                }
                found = asked[top // 2 : top // 2 + 8, left // 2 : left // 2 + 8]
                assert set(found[found != UNSCORED].tolist()) == labels


def test_a_scene_that_scans_do_not_fill_is_an_error():
    with pytest.raises(ValueError, match="side=40 must be a multiple of 16 pixels"):
        scenes(sizes=Sizes(1, 1, 1), side=40)
    with pytest.raises(ValueError, match="patch=3 a divisor of 16"):
        scenes(sizes=Sizes(1, 1, 1), side=32, patch=3)
