# SPDX-License-Identifier: Apache-2.0
"""Tasks on maps: every answer follows from a token whose distance is told, however far it is."""

import numpy as np

from mambaout_jax.ablation.examples import UNSCORED, Sizes
from mambaout_jax.ablation.maps import cue, legend, sweep

SIZES = Sizes(60, 5, 40)


def scored(task):
    """(map, row, column, answer, distance) of everything asked in the training split."""
    width = task.grid[1]
    for tokens, targets, distances in zip(*task.train, strict=True):
        for place in np.flatnonzero(targets != UNSCORED):
            yield tokens, *divmod(int(place), width), targets[place], distances[place]
        assert (distances[targets == UNSCORED] == 0).all()


def test_cue_asks_every_object_for_the_colour_of_the_cue():
    task = cue(sizes=SIZES, side=9, objects=12, colours=4)
    assert (task.grid, task.vocabulary, task.num_classes, task.far) == ((9, 9), 6, 4, 4)
    assert not task.autoregressive
    asked = 0
    for tokens, row, column, answer, distance in scored(task):
        ((cue_row, cue_column),) = np.argwhere((tokens >= 1) & (tokens <= 4))
        assert tokens[row, column] == 5
        assert answer == tokens[cue_row, cue_column] - 1
        assert distance == max(abs(row - cue_row), abs(column - cue_column)) > 0
        asked += 1
    assert asked == 60 * 12
    assert all((tokens == 5).sum() == 12 for tokens in task.train.inputs)
    assert abs(task.chance - 0.25) < 0.15


def test_legend_swaps_the_labels_of_the_shapes():
    task = legend(sizes=SIZES, side=8, objects=10)
    assert (task.vocabulary, task.num_classes, task.far) == (5, 2, 4)
    seen = set()
    for tokens, row, column, answer, distance in scored(task):
        ((top, left),) = np.argwhere((tokens == 1) | (tokens == 2))
        swapped, shape = tokens[top, left] - 1, tokens[row, column] - 3
        assert answer == (1 - shape if swapped else shape)
        assert distance == max(abs(row - top), abs(column - left))
        seen.add((int(swapped), int(shape)))
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_sweep_asks_for_the_nearest_object_to_the_left():
    task = sweep(sizes=SIZES, length=11, rows=3, objects=2, colours=3)
    assert (task.grid, task.vocabulary, task.num_classes, task.far) == ((3, 11), 4, 3, 5)
    asked = 0
    for tokens, row, column, answer, distance in scored(task):
        assert tokens[row, column] == 0
        left = tokens[row, :column]
        nearest = max(i for i, token in enumerate(left) if token)
        assert (answer, distance) == (left[nearest] - 1, column - nearest)
        asked += 1
    blanks_with_an_object = sum(
        sum(not token and row[:i].any() for i, token in enumerate(row))
        for tokens in task.train.inputs
        for row in tokens
    )
    assert asked == blanks_with_an_object


def test_longer_maps_differ_in_their_size_alone():
    short, long = (cue(sizes=SIZES, side=side) for side in (6, 16))
    assert (short.length, long.length) == (36, 256)
    for task in (short, long):
        assert (task.vocabulary, task.num_classes) == (6, 4)
        assert all((tokens == 5).sum() == 16 for tokens in task.test.inputs)
