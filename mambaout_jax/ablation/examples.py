# SPDX-License-Identifier: Apache-2.0
"""What a task of the grid is: examples, what is asked of them, and how far away the answer lies."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

UNSCORED = -1  # target of a token of which nothing is asked


class Examples(NamedTuple):
    """Inputs and what is asked of them.

    Attributes:
        inputs: ids of tokens (E, H, W), or features (E, H, W, I).
        targets: one class per example (E,) or per token in raster order (E, L), or UNSCORED.
        distances: of each scored token to the token that decides its answer: the larger of rows and
            columns on a map, tokens in a sequence; None where no single token decides.
    """

    inputs: Int[np.ndarray, "E H W"] | Float[np.ndarray, "E H W I"]
    targets: Int[np.ndarray, "E"] | Int[np.ndarray, "E L"]
    distances: Int[np.ndarray, "E L"] | None = None


class Sizes(NamedTuple):
    """How many examples are made for training, for choosing a learning rate, and for the report."""

    train: int
    validation: int
    test: int


@dataclasses.dataclass(frozen=True)
class TokenTask:
    """A task and its data.

    Attributes:
        name: of the generator, a key of `tasks.TOKEN_TASKS`.
        autoregressive: whether each token may see only those before it.
        vocabulary: how many ids there are; 0 where the inputs are features.
        num_classes: how many answers there are.
        train, validation, test: disjoint, or drawn independently.
        far: answers count in the accuracy from this distance on; nearer ones are trained on, too,
            and stand in the accuracy by distance.
    """

    name: str
    autoregressive: bool
    vocabulary: int
    num_classes: int
    train: Examples
    validation: Examples
    test: Examples
    far: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the tokens; a sequence is one row."""
        height, width = self.train.inputs.shape[1:3]
        return height, width

    @property
    def length(self) -> int:
        """L, in tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> int:
        """I, channels of a token as the model reads it."""
        return self.vocabulary or self.train.inputs.shape[-1]

    @property
    def dense(self) -> bool:
        """Whether tokens have targets, instead of examples."""
        return self.train.targets.ndim == 2

    @property
    def farthest(self) -> int:
        """The longest way from a question to its answer that a grid of this size allows."""
        return max(self.grid) - 1

    @property
    def chance(self) -> float:
        """Accuracy on the test set of always giving the training set's most frequent answer."""
        answer = np.bincount(self._counted(self.train)).argmax()
        return float(np.mean(self._counted(self.test) == answer))

    def _counted(self, examples: Examples) -> Int[np.ndarray, "S"]:
        counts = examples.targets != UNSCORED
        if examples.distances is not None:
            counts &= examples.distances >= self.far
        return examples.targets[counts]


Draw = Callable[[np.random.Generator, int], Examples]


def drawn(draw: Draw, sizes: Sizes, seed: int) -> tuple[Examples, Examples, Examples]:
    """Independent draws for training, validation and test."""
    train, validation, test = np.random.default_rng(seed).spawn(3)
    return draw(train, sizes.train), draw(validation, sizes.validation), draw(test, sizes.test)


def choose(
    rng: np.random.Generator, count: int, among: int, number: int
) -> Int[np.ndarray, "E number"]:
    """`number` different ones of 0 ... among - 1, for each example."""
    if number > among:
        raise ValueError(f"{number} different ones cannot be chosen among {among}")
    return rng.permuted(np.tile(np.arange(among), (count, 1)), axis=1)[:, :number]


def put(rows: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """Writes values (E, K) at places (E, K) of rows (E, L)."""
    np.put_along_axis(rows, places, values, axis=1)


def unscored(count: int, length: int) -> Int[np.ndarray, "E L"]:
    """Targets of examples of which nothing is asked yet."""
    return np.full((count, length), UNSCORED, np.int32)


def last_objects(
    rng: np.random.Generator, shape: tuple[int, int], objects: int, colours: int
) -> tuple[Int[np.ndarray, "E L"], Int[np.ndarray, "E L"], Int[np.ndarray, "E L"]]:
    """Rows with objects anywhere: of every blank after one, the colour of the last is asked.

    Args:
        rng: what draws.
        shape: (E, L).
        objects: in each row.
        colours: of objects; inputs count them from 1, blanks being 0, answers from 0.

    Returns:
        Inputs, targets and distances, each (E, L); see `Examples`.
    """
    count, length = shape
    places = choose(rng, count, length, objects)
    inputs = np.zeros(shape, np.int32)
    put(inputs, places, 1 + rng.integers(colours, size=places.shape))
    columns = np.arange(length)
    last = np.maximum.accumulate(np.where(inputs > 0, columns, -1), axis=1)
    asked = (inputs == 0) & (last >= 0)
    colour = np.take_along_axis(inputs, np.maximum(last, 0), axis=1) - 1
    targets = np.where(asked, colour, UNSCORED).astype(np.int32)
    return inputs, targets, np.where(asked, columns - last, 0).astype(np.int32)
