# SPDX-License-Identifier: Apache-2.0
"""Maps whose tokens all see each other, and in which an answer lies away from its question.

A convolution cannot answer what lies beyond its reach, whatever it has learned; a scan can carry it
there. Accuracy counts answers at least half a side away, so that only the size of the map decides
whether the convolution reaches them. These are flip-flops in two dimensions (Liu et al. 2023,
arXiv:2306.00946, carry one bit along a sequence).
"""

import numpy as np

from mambaout_jax.ablation.examples import (
    UNSCORED,
    Examples,
    Sizes,
    TokenTask,
    choose,
    drawn,
    last_objects,
    put,
    unscored,
)


def cue(
    *, sizes: Sizes, side: int, objects: int = 16, colours: int = 4, seed: int = 0
) -> TokenTask:
    """Which colour has the cue? Asked of every object on the map.

    Args:
        sizes: examples of each split.
        side: tokens of a side of the map.
        objects: how many objects lie on it, anywhere, beside one cue.
        colours: of the cue; there are as many answers.
        seed: seed of the data.
    """

    def draw(rng: np.random.Generator, count: int) -> Examples:
        places = choose(rng, count, side**2, objects + 1)
        colour = rng.integers(colours, size=(count, 1))
        inputs, targets = np.zeros((count, side**2), np.int32), unscored(count, side**2)
        put(inputs, places, np.full_like(places, colours + 1))
        put(inputs, places[:, :1], 1 + colour)
        put(targets, places[:, 1:], colour)
        return Examples(_as_map(inputs, side), targets, _from(places[:, :1], targets, side))

    return TokenTask("cue", False, colours + 2, colours, *drawn(draw, sizes, seed), far=side // 2)


def legend(*, sizes: Sizes, side: int, objects: int = 16, seed: int = 0) -> TokenTask:
    """Which label has a shape? The legend, a token anywhere on the map, says how the two shapes are
    labelled: as they are, or the other way round. Asked of every shape.

    Args:
        sizes, side, objects, seed: as in `cue`; objects are the shapes.
    """
    blank, first_legend, first_shape = 0, 1, 3

    def draw(rng: np.random.Generator, count: int) -> Examples:
        places = choose(rng, count, side**2, objects + 1)
        swapped = rng.integers(2, size=(count, 1))
        shapes = rng.integers(2, size=(count, objects))
        inputs = np.full((count, side**2), blank, np.int32)
        targets = unscored(count, side**2)
        put(inputs, places[:, :1], first_legend + swapped)
        put(inputs, places[:, 1:], first_shape + shapes)
        put(targets, places[:, 1:], shapes ^ swapped)
        return Examples(_as_map(inputs, side), targets, _from(places[:, :1], targets, side))

    return TokenTask("legend", False, 5, 2, *drawn(draw, sizes, seed), far=side // 2)


def sweep(
    *, sizes: Sizes, length: int, rows: int = 8, objects: int = 2, colours: int = 4, seed: int = 0
) -> TokenTask:
    """Which colour has the nearest object to the left? Asked of every blank token that has one.

    Args:
        sizes: examples of each split.
        length: tokens of a row.
        rows: of the map, each with objects of its own.
        objects: per row, anywhere in it.
        colours: of objects; there are as many answers.
        seed: seed of the data.
    """

    def draw(rng: np.random.Generator, count: int) -> Examples:
        inputs, targets, distances = last_objects(rng, (count * rows, length), objects, colours)
        return Examples(
            inputs.reshape(count, rows, length),
            targets.reshape(count, -1),
            distances.reshape(count, -1),
        )

    splits = drawn(draw, sizes, seed)
    return TokenTask("sweep", False, colours + 1, colours, *splits, far=length // 2)


def _as_map(rows: np.ndarray, side: int) -> np.ndarray:
    return rows.reshape(-1, side, side)


def _from(place: np.ndarray, targets: np.ndarray, side: int) -> np.ndarray:
    """Distance of every scored token of a map from one place (E, 1) on it; 0 for the others."""
    rows, columns = np.divmod(np.arange(side**2), side)
    distances = np.maximum(abs(rows - place // side), abs(columns - place % side))
    return np.where(targets == UNSCORED, 0, distances).astype(np.int32)
