# SPDX-License-Identifier: Apache-2.0
"""A set of images with the labels that a model gave its classes: found by name."""

import collections
import logging
from collections.abc import Sequence

from mambaout_jax.data.sets.listing import listed
from mambaout_jax.data.sets.sources import LabelledImages
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS

_logger = logging.getLogger("mambaout_jax")


class Renumbered:
    """The examples of a set, whose classes may be some of those of a model.

    Args:
        source: the set.
        class_names: of the model, in the order of its outputs. The thousand of ImageNet-1k are
            also found by their synsets.
        named: False where the weights do not tell the names. Then class folders named by numbers
            have these labels, and others their place in sorted order, if there are as many.

    Raises:
        ValueError: a class of the set is none of the model's.
    """

    def __init__(self, source: LabelledImages, class_names: Sequence[str], named: bool = True):
        self._source = source
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        if named:
            self._numbers = _by_name(tuple(source.class_names), self.class_names)
        else:
            self._numbers = _by_place(source.class_names, self.num_classes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        return {**example, "label": self._numbers[example["label"]]}


def _by_name(ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[int]:
    if ours == theirs:  # whatever they are called
        return list(range(len(theirs)))
    if ours == CLASS_NAMES:
        ours = SYNSETS
    often = collections.Counter(theirs)
    numbers = {name: label for label, name in enumerate(theirs) if often[name] == 1}
    if theirs == CLASS_NAMES:
        numbers |= {synset: label for label, synset in enumerate(SYNSETS)}
    unknown = [name for name in ours if name not in numbers]
    if unknown:
        example = SYNSETS if theirs == CLASS_NAMES else theirs
        raise ValueError(
            f"the weights have no class that is called {listed(unknown)}; theirs are "
            f"{listed(example)}: call the sub-folders by these names, or evaluate weights that "
            "were trained on these classes"
        )
    return [numbers[name] for name in ours]


def _by_place(ours: Sequence[str], count: int) -> list[int]:
    if all(name.isdecimal() for name in ours) and max(map(int, ours)) < count:
        return list(map(int, ours))
    if len(ours) != count:
        raise ValueError(
            f"the data have {len(ours)} classes and the weights {count}, which they do not name; "
            f"call the sub-folders 0 to {count - 1}, by the order of the outputs"
        )
    _logger.warning(
        "the weights do not name their %d classes: those of the data are taken for them in sorted "
        "order, %s", count, listed(ours),
    )  # fmt: skip
    return list(range(count))
