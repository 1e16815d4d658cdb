# SPDX-License-Identifier: Apache-2.0
"""Autoregressive tasks: every answer follows from the tokens before it."""

import numpy as np
import pytest

from mambaout_jax.ablation.examples import UNSCORED, Sizes
from mambaout_jax.ablation.sequences import copying, flip_flop, induction, recall

SIZES = Sizes(60, 5, 20)


def sequences(task):
    assert task.autoregressive
    for tokens, targets, distances in zip(*task.train, strict=True):
        assert (distances[targets == UNSCORED] == 0).all()
        yield tokens[0].tolist(), targets, distances


def test_flip_flop_asks_every_blank_for_the_symbol_written_last():
    task = flip_flop(sizes=SIZES, length=11, writes=2, symbols=3)
    assert (task.length, task.vocabulary, task.num_classes, task.far) == (11, 4, 3, 5)
    for tokens, targets, distances in sequences(task):
        assert np.count_nonzero(tokens) == 2
        last, place = None, None
        for i, token in enumerate(tokens):
            if token:
                last, place = token - 1, i
            if token or last is None:
                assert targets[i] == UNSCORED
            else:
                assert (targets[i], distances[i]) == (last, i - place)


def test_copying_asks_for_the_symbols_in_order():
    task = copying(sizes=SIZES, length=40, items=3, symbols=4)
    assert (task.length, task.vocabulary, task.num_classes) == (40, 6, 4)
    for tokens, targets, distances in sequences(task):
        separator = tokens.index(5)
        assert separator == 37
        strewn = [i for i, token in enumerate(tokens[:separator]) if token]
        answers = [tokens[i] - 1 for i in strewn]
        assert targets[targets != UNSCORED].tolist() == answers
        assert (targets[:separator] == UNSCORED).all()
        assert [token - 1 for token in tokens[separator + 1 :]] == answers[:-1]  # so far
        assert distances[separator:].tolist() == [37 + j - i for j, i in enumerate(strewn)]


def test_induction_asks_for_what_followed_the_key():
    task = induction(sizes=SIZES, length=30, symbols=7)
    assert (task.length, task.vocabulary, task.num_classes) == (30, 8, 7)
    places = set()
    for tokens, targets, distances in sequences(task):
        first, last = (i for i, token in enumerate(tokens) if token == 7)
        assert last == 29
        assert (targets[:-1] == UNSCORED).all()
        assert targets[-1] == tokens[first + 1]
        assert distances[-1] == 29 - (first + 1)
        places.add(first)
    assert (min(places), max(places)) == (0, 27)


def test_recall_asks_for_the_value_that_came_with_the_key():
    task = recall(sizes=SIZES, length=41, pairs=3, keys=6, values=5)
    assert (task.length, task.vocabulary, task.num_classes) == (41, 12, 5)
    places = set()
    for tokens, targets, distances in sequences(task):
        value_of = dict(zip(tokens[0:6:2], tokens[1:6:2], strict=True))
        assert len(value_of) == 3
        asked = np.flatnonzero(targets != UNSCORED)
        assert sorted(tokens[i] for i in asked) == sorted(value_of)
        for i in asked:
            assert targets[i] == value_of[tokens[i]] - 7
            assert distances[i] == i - (tokens.index(tokens[i]) + 1)
            if i + 1 < len(tokens):  # the sequence goes on with the answer
                assert tokens[i + 1] == value_of[tokens[i]]
        assert np.count_nonzero(tokens[6:]) == 6 - (asked[-1] == 40)
        places |= set(asked.tolist())
    assert (min(places), max(places)) == (6, 40)


def test_what_cannot_be_made_is_an_error():
    with pytest.raises(ValueError, match="9 different ones cannot be chosen among 4"):
        recall(sizes=Sizes(1, 1, 1), length=60, pairs=9, keys=4, values=3)
    with pytest.raises(ValueError, match="9 different ones cannot be chosen among 4"):
        copying(sizes=Sizes(1, 1, 1), length=13, items=9, symbols=3)
