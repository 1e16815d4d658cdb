# SPDX-License-Identifier: Apache-2.0
"""Batches of one group each: shares, passes, and the same order however it is read."""

import itertools
import pickle

import grain
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from mambaout_jax.config import default_config
from mambaout_jax.data import loader
from mambaout_jax.data.order import GroupedOrder, batch_shares

# Sizes of three groups that lie among each other, and a batch that divides none of them.
GROUPS = np.random.default_rng(0).permutation(np.repeat([5, 2, 9], [31, 17, 6]))
LISTED: list[int] = GROUPS.tolist()


class Numbers:
    """Examples that are nothing but their numbers."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"number": index}


def view(example, rng):
    """Shapes differ between groups; numbers show which example it is and what was drawn."""
    index = example["number"]
    draw = rng.integers(1 << 30, size=(int(GROUPS[index]), 2))
    return {"index": np.int32(index), "draw": draw}


def train_batches(count, groups=LISTED, view=view, **part):
    config = default_config()
    config.seed, config.batch_size, config.data.num_threads = 3, 6, 3
    source = Numbers(54 if groups is None else len(groups))
    with loader.train_batches(config, source, view, groups=groups, **part) as batches:
        return list(itertools.islice(batches, count))


@pytest.fixture(scope="module")
def reference():
    return train_batches(32)


@pytest.fixture(scope="module")
def positions():
    """The examples of twelve epochs, by number."""
    order = GroupedOrder(LISTED, 6, seed=1)
    assert len(order) == 54
    return np.array([order[i] for i in range(12 * 54)])


def test_epochs_share_their_batches_among_the_groups(positions):
    # 31, 17 and 6 of 54 examples in 9 batches of 6: 5.17, 2.83 and 1.
    batches = GROUPS[positions].reshape(12, 9, 6)
    np.testing.assert_array_equal(batches.min(axis=2), batches.max(axis=2))
    epochs = batches[:, :, 0]
    for group, share in ((5, 5), (2, 3), (9, 1)):
        np.testing.assert_array_equal((epochs == group).sum(axis=1), share)
    assert len({epoch.tobytes() for epoch in epochs}) >= 10  # of 504 orders


@pytest.mark.parametrize(
    ("sizes", "batch_size", "shares"),
    [
        ((100,), 16, (6,)),
        ((105, 35), 10, (11, 3)),  # 10.5 and 3.5, of 14: the first of two equal remainders
        ((31, 17, 6), 6, (5, 3, 1)),
        ((97, 2, 1), 10, (10, 1, 1)),  # 9.7, 0.2, 0.1: at least one
        ((3, 4), 16, (1, 1)),
    ],
)
def test_shares_are_by_largest_remainders_and_at_least_one(sizes, batch_size, shares):
    assert batch_shares(sizes, batch_size) == shares


@pytest.mark.parametrize("group", [5, 2, 9])
def test_every_example_of_a_group_comes_once_in_a_pass(positions, group):
    indices = positions[GROUPS[positions] == group]
    members = np.flatnonzero(group == GROUPS)
    passes = indices[: len(indices) // len(members) * len(members)].reshape(-1, len(members))
    assert len(passes) >= 11
    np.testing.assert_array_equal(np.sort(passes, axis=1), members + 0 * passes)
    assert len({one.tobytes() for one in passes}) > len(passes) / 2


def test_order_depends_on_the_seed_and_the_position_alone():
    one, other, third = (GroupedOrder(LISTED, 6, seed) for seed in (3, 3, 4))
    positions = list(range(70))  # more than an epoch
    forwards = [one[i] for i in positions]
    backwards = [pickle.loads(pickle.dumps(other))[i] for i in reversed(positions)]
    assert forwards == backwards[::-1]
    assert list(one[10:15]) == forwards[10:15]
    assert sum(third[i] == forwards[i] for i in positions) < 15  # 2 by chance


def test_groups_of_one_size_have_orders_of_their_own():
    order = GroupedOrder([0, 1] * 40, 4, 3)
    numbers = [order[position] for position in range(80)]
    of_groups = [[number // 2 for number in numbers if number % 2 == group] for group in (0, 1)]
    assert sorted(of_groups[0]) == sorted(of_groups[1]) == list(range(40))
    assert of_groups[0] != of_groups[1]


def test_one_group_is_the_order_without_groups():
    plain = grain.MapDataset.range(20).shuffle(seed=5)
    order = GroupedOrder([4] * 20, 6, seed=5)
    assert [order[i] for i in range(50)] == [plain[i] for i in range(50)]

    def both(example, rng):
        return {"number": np.int32(example["number"]), "draw": rng.integers(1 << 30)}

    def batches(groups):
        return train_batches(12, groups, both)

    for a, b in zip(batches(None), batches([4] * 54), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_hold_one_group_and_draws_of_their_own(reference):
    for batch in reference:
        (group,) = set(GROUPS[batch["index"]])
        assert batch["draw"].shape == (6, group, 2)
    draws = [one.tobytes() for batch in reference for one in batch["draw"]]
    assert len(set(draws)) == 192


@pytest.mark.parametrize("process_count", [2, 3])
def test_batches_are_the_same_for_any_process_count_and_resume(reference, process_count):
    for start in (0, 13, 25):
        parts = [
            train_batches(7, start_step=start, process_index=index, process_count=process_count)
            for index in range(process_count)
        ]
        for step, want in enumerate(itertools.islice(reference, start, start + 7)):
            for name in want:
                got = np.concatenate([part[step][name] for part in parts])
                np.testing.assert_array_equal(got, want[name])


def test_a_group_smaller_than_a_batch_is_told(caplog):
    order = GroupedOrder([0] * 30 + [1] * 4, 8, seed=0)
    assert caplog.messages == [
        "group 1 of the training examples has 4, fewer than a batch of 8: each is read 2 times an "
        "epoch"
    ]
    last = [i for i in (order[i] for i in range(len(order))) if i >= 30]
    np.testing.assert_array_equal(np.bincount(last, minlength=34)[30:], [2] * 4)


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    groups=strategies.lists(strategies.integers(0, 3), min_size=1, max_size=40),
    batch_size=strategies.integers(1, 9),
    seed=strategies.integers(0, 2**32 - 1),
)
def test_any_groups_are_read_in_whole_passes(groups, batch_size, seed):
    order = GroupedOrder(groups, batch_size, seed)
    epoch = len(order)
    numbers = np.array(groups)
    indices = np.array([order[i] for i in range(min(2 * epoch, 150))])
    indices = indices[: len(indices) // batch_size * batch_size]
    batches = numbers[indices].reshape(-1, batch_size)
    np.testing.assert_array_equal(batches.min(axis=1), batches.max(axis=1))
    for group in set(groups):
        members = np.flatnonzero(numbers == group)
        counts = np.bincount(indices, minlength=len(groups))[members]
        assert np.ptp(counts) <= 1  # no example comes again before all have come
    shares = dict(zip(*np.unique(numbers, return_counts=True), strict=True))
    total = max(1, round(len(groups) / batch_size))
    assert total <= epoch / batch_size <= total + len(shares)
