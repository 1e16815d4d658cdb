# SPDX-License-Identifier: Apache-2.0
"""What every task has in common: what counts, chance, splits that share nothing."""

import numpy as np
import pytest

from mambaout_jax.ablation.examples import UNSCORED, Examples, Sizes, TokenTask, choose
from mambaout_jax.ablation.tasks import TOKEN_TASKS

SIZES = Sizes(40, 10, 20)
GENERATED = {
    "cue": {"side": 6},
    "legend": {"side": 6},
    "sweep": {"length": 9},
    "scenes": {"side": 32},
    "flip_flop": {"length": 9},
    "copying": {"length": 20},
    "induction": {"length": 20},
    "recall": {"length": 20},
}


def test_chance_is_the_most_frequent_answer_among_those_that_count():
    targets = np.array([[0, 1, 1, UNSCORED], [2, 2, 1, 0]], np.int32)
    distances = np.array([[5, 1, 5, 0], [5, 1, 1, 5]], np.int32)
    inputs = np.zeros((2, 1, 4), np.int32)
    train, test = Examples(inputs, targets, distances), Examples(inputs, targets[::-1], distances)
    task = TokenTask("x", True, 3, 3, train, train, test, far=4)
    # Far ones in training: 0, 1, 2, 0; in the test set: 2, 1, 0, UNSCORED (which never counts).
    assert task.chance == 1 / 3
    assert TokenTask("x", True, 3, 3, train, train, test).chance == 3 / 7  # 1, three times of seven
    assert (task.grid, task.length, task.farthest, task.features, task.dense) == (
        (1, 4), 4, 3, 3, True
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_data_follow_the_seed_and_splits_differ(name):
    def make(**changes):
        return TOKEN_TASKS[name](**GENERATED[name], sizes=SIZES, **changes)

    one, same, other = make(), make(), make(seed=1)
    for split, count in SIZES._asdict().items():
        found, again = getattr(one, split), getattr(same, split)
        assert len(found.inputs) == len(found.targets) == count
        for a, b in zip(found, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (one.train.inputs != other.train.inputs).any()
    assert (one.train.inputs[:20] != one.test.inputs).any()
    assert (one.train.inputs[:10] != one.validation.inputs).any()


def test_different_ones_are_chosen_and_too_many_are_an_error():
    rows = choose(np.random.default_rng(0), 200, 5, 3)
    assert all(len(set(row)) == 3 for row in rows.tolist())
    assert set(rows.ravel().tolist()) == set(range(5))
    with pytest.raises(ValueError, match="9 different ones cannot be chosen among 4"):
        choose(np.random.default_rng(0), 1, 4, 9)
