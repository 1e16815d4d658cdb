# SPDX-License-Identifier: Apache-2.0
"""Sets are told apart by names and labels, on any machine alike; and how they differ, in words."""

import json
import shutil

import pytest
from PIL import Image

from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.folder import ImageFolder
from mambaout_jax.data.sets.identity import changes, class_changes, fingerprint, identity


def make(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (2, 2)).save(root / name / f"{index}.png")
    return root


def of(root):
    return identity(ImageFolder(root, "train", 0.25))


def test_the_identity_of_a_folder_says_what_it_holds(tmp_path):
    found = of(make(tmp_path / "set", cat=4, dog=8))
    assert found["kind"] == "ImageFolder"
    assert found["examples"] == 9
    assert found["classes"] == {"cat": 3, "dog": 6}
    assert json.loads(json.dumps(found)) == found
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    assert of(tmp_path / "moved") == found
    assert changes(found, of(tmp_path / "moved")) == ""


def rename(root):
    (root / "cat").rename(root / "kitten")


def add_class(root):
    make(root, ant=4)


def drop_class(root):
    shutil.rmtree(root / "cow")


def add_image(root):
    for index in range(4):
        Image.new("L", (2, 2)).save(root / "dog" / f"new{index}.png")


def swap(root):
    for index in range(4):
        one, other = root / "cat" / f"{index}.png", root / "dog" / f"{index}.png"
        one.rename(root / "dog" / f"of_cat{index}.png")
        other.rename(root / "cat" / f"of_dog{index}.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename,
            "classes that are gone: 'cat'; new classes: 'kitten'; they may have been renamed",
        ),
        (add_class, "new classes: 'ant'; it had 9 examples and has 12"),
        (drop_class, "classes that are gone: 'cow'; it had 9 examples and has 6"),
        (add_image, "'dog' had 3 images and has 6; it had 9 examples and has 12"),
        (swap, "it has as many examples, of other names or with other labels"),
    ],
)
def test_changes_are_told(tmp_path, change, words):
    before = of(make(tmp_path, cat=4, cow=4, dog=4))
    change(tmp_path)
    assert changes(before, of(tmp_path)) == words


def test_a_fingerprint_is_of_names_and_labels_in_their_order():
    prints = [
        fingerprint(["a/1", "b/2"], [0, 1]),
        fingerprint(["b/2", "a/1"], [1, 0]),
        fingerprint(["a/1", "b/2"], [0, 0]),
        fingerprint(["a/1", "b/3"], [0, 1]),
        fingerprint(["a/\udce9", "b/3"], [0, 1]),  # a name that is not UTF-8
    ]
    assert len(set(prints)) == 5
    # Fixed, as runs keep it.
    assert prints[0] == "d4720a4c03ee7fa4636214283a66c381bb3d02db8effd46372d6259a29e4aaaf"


def test_splits_and_kinds_differ():
    train, validation = (identity(Digits(split)) for split in ("train", "validation"))
    assert train["fingerprint"] == identity(Digits("train"))["fingerprint"]
    assert train["fingerprint"] != validation["fingerprint"]
    assert sum(train["classes"].values()) == train["examples"] == 1438
    assert identity([1, 2]) == {"kind": "list", "examples": 2}
    assert changes(identity([1, 2]), identity((1, 2))) == "it was a list and is a tuple"


def test_an_order_of_classes_is_a_change():
    assert class_changes("ab", "ba") == "the classes have another order"
    assert class_changes("ab", "ab") == ""
