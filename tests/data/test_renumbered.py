# SPDX-License-Identifier: Apache-2.0
"""Labels of a model for the classes of a set: by name, whatever their place."""

import pytest

from mambaout_jax.data.sets.renumbered import Renumbered
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS


class Labels:
    """One example of each class."""

    def __init__(self, *class_names):
        self.class_names, self.num_classes = class_names, len(class_names)

    def __len__(self):
        return self.num_classes

    def __getitem__(self, index):
        return {"image": None, "label": index}


def labels(source):
    return [source[index]["label"] for index in range(len(source))]


@pytest.mark.parametrize(
    ("ours", "theirs", "want"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1]),
        (("cat", "mouse"), ("ant", "mouse", "cat"), [2, 1]),
        ((SYNSETS[7], SYNSETS[3]), CLASS_NAMES, [7, 3]),
        ((SYNSETS[7],), SYNSETS, [7]),
        (("tench",), CLASS_NAMES, [0]),
        (CLASS_NAMES, CLASS_NAMES, list(range(1000))),
        (CLASS_NAMES, SYNSETS, list(range(1000))),
        (SYNSETS, CLASS_NAMES, list(range(1000))),
    ],
    ids=str,
)
def test_classes_are_found_by_name(ours, theirs, want):
    source = Renumbered(Labels(*ours), theirs)
    assert labels(source) == want
    assert source.class_names == theirs
    assert source.num_classes == len(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (("cat", "kitten"), ("cat", "dog"), "no class .* called 'kitten'; theirs are 'cat', 'dog'"),
        (("yak",), CLASS_NAMES, "no class .* 'yak'; theirs are 'n01440764', "),
        (("cat",), ("cat", "dog", "cat"), "no class that is called 'cat'"),
        (("0", "1"), ("cat", "dog"), "no class that is called '0', '1'"),
    ],
)
def test_classes_that_the_weights_do_not_have_are_told(ours, theirs, words):
    with pytest.raises(ValueError, match=words):
        Renumbered(Labels(*ours), theirs)


def test_weights_without_names_take_numbers_and_places(caplog):
    theirs = tuple(f"class {i}" for i in range(11))
    assert labels(Renumbered(Labels("0", "1", "10", "2"), theirs, named=False)) == [0, 1, 10, 2]
    assert caplog.text == ""
    source = Renumbered(Labels("cat", "dog"), theirs[:2], named=False)
    assert labels(source) == [0, 1]
    assert "do not name their 2 classes: those of the data are taken" in caplog.text
    for ours in (("cat", "dog", "mouse"), ("1", "2", "3")):
        with pytest.raises(ValueError, match=r"data have 3 classes and the weights 2, .* 0 to 1"):
            Renumbered(Labels(*ours), theirs[:2], named=False)
