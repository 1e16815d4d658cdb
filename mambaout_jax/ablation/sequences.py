# SPDX-License-Identifier: Apache-2.0
"""Sequences in which each token may see only those before it: the next token is asked."""

import numpy as np

from mambaout_jax.ablation.examples import (
    Examples,
    Sizes,
    TokenTask,
    choose,
    drawn,
    last_objects,
    put,
    unscored,
)


def flip_flop(
    *, sizes: Sizes, length: int, writes: int = 2, symbols: int = 4, seed: int = 0
) -> TokenTask:
    """Flip-flop (Liu et al. 2023, arXiv:2306.00946): which symbol was written last?

    Asked of every blank after the first one. Accuracy counts answers at least half a sequence away.

    Args:
        sizes: examples of each split.
        length: L.
        writes: symbols in a sequence, anywhere in it.
        symbols: different ones; there are as many answers.
        seed: seed of the data.
    """

    def draw(rng: np.random.Generator, count: int) -> Examples:
        inputs, targets, distances = last_objects(rng, (count, length), writes, symbols)
        return Examples(inputs[:, None], targets, distances)

    splits = drawn(draw, sizes, seed)
    return TokenTask("flip_flop", True, symbols + 1, symbols, *splits, far=length // 2)


def copying(
    *, sizes: Sizes, length: int, items: int = 3, symbols: int = 4, seed: int = 0
) -> TokenTask:
    """Selective copying (Mamba, arXiv:2312.00752, Section 3.1): repeat the symbols, skip the noise.

    Symbols are strewn over noise; after a separator the sequence goes on with them, in order. The
    answers given so far are seen, as in any next-token prediction.

    Args:
        sizes: examples of each split.
        length: L.
        items: symbols to repeat.
        symbols: different ones.
        seed: seed of the data.
    """
    noise, separator = 0, symbols + 1

    def draw(rng: np.random.Generator, count: int) -> Examples:
        answers = rng.integers(symbols, size=(count, items))
        places = np.sort(choose(rng, count, length - items, items))
        context = np.full((count, length - items), noise)
        put(context, places, answers + 1)
        inputs = np.concatenate(
            (context, np.full((count, 1), separator), answers[:, :-1] + 1), axis=1
        )
        targets, distances = unscored(count, length), np.zeros((count, length), np.int32)
        targets[:, length - items :] = answers
        distances[:, length - items :] = np.arange(length - items, length) - places
        return Examples(inputs[:, None].astype(np.int32), targets, distances)

    return TokenTask("copying", True, symbols + 2, symbols, *drawn(draw, sizes, seed))


def induction(*, sizes: Sizes, length: int, symbols: int = 8, seed: int = 0) -> TokenTask:
    """Induction heads (Mamba, arXiv:2312.00752, Section 3.1): what came after the key?

    Random symbols, among them once a key, anywhere; it comes again as the last token, where the
    symbol that followed it is asked.

    Args:
        sizes: examples of each split.
        length: L, at least 3.
        symbols: different ones beside the key.
        seed: seed of the data.
    """
    key = symbols

    def draw(rng: np.random.Generator, count: int) -> Examples:
        inputs = rng.integers(symbols, size=(count, length)).astype(np.int32)
        places = rng.integers(length - 2, size=(count, 1))
        put(inputs, places, np.full_like(places, key))
        inputs[:, -1] = key
        targets, distances = unscored(count, length), np.zeros((count, length), np.int32)
        targets[:, -1:] = np.take_along_axis(inputs, places + 1, axis=1)
        distances[:, -1:] = length - 1 - (places + 1)
        return Examples(inputs[:, None], targets, distances)

    return TokenTask("induction", True, symbols + 1, symbols, *drawn(draw, sizes, seed))


def recall(
    *, sizes: Sizes, length: int, pairs: int = 3, keys: int = 8, values: int = 8, seed: int = 0
) -> TokenTask:
    """Multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927, Section 3).

    Pairs of a key and a value, then noise in which each pair comes once more, anywhere: at its key
    the value is asked. Who knows the values, but not which key is whose, is right about once in
    `pairs` answers.

    Args:
        sizes: examples of each split.
        length: L.
        pairs: how many in each example, of different keys.
        keys, values: different ones in the vocabulary.
        seed: seed of the data.
    """
    noise, room = 0, length + 1 - 2 * pairs  # tokens after the pairs

    def draw(rng: np.random.Generator, count: int) -> Examples:
        key = choose(rng, count, keys, pairs)
        value = rng.integers(values, size=(count, pairs))
        sequence, targets = np.full((count, length + 1), noise), unscored(count, length + 1)
        distances = np.zeros((count, length + 1), np.int32)
        first = np.broadcast_to(2 * np.arange(pairs), (count, pairs))
        again = 2 * pairs + 2 * choose(rng, count, room // 2, pairs)
        for places in (first, again):
            put(sequence, places, 1 + key)
            put(sequence, places + 1, 1 + keys + value)
        put(targets, again, value)
        put(distances, again, again - first - 1)
        inputs = sequence[:, None, :-1].astype(np.int32)
        return Examples(inputs, targets[:, :-1], distances[:, :-1])

    return TokenTask("recall", True, 1 + keys + values, values, *drawn(draw, sizes, seed))
