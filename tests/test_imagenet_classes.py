# SPDX-License-Identifier: Apache-2.0
"""The classes of ImageNet-1k: order and pairing of synsets and names."""

import re

from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS


def test_synsets_are_a_thousand_in_sorted_order():
    assert len(SYNSETS) == len(CLASS_NAMES) == 1000
    assert list(SYNSETS) == sorted(set(SYNSETS))
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in SYNSETS)


def test_names_stand_beside_their_synsets():
    named = dict(zip(SYNSETS, CLASS_NAMES, strict=True))
    known = {
        "n01440764": "tench",
        "n02123045": "tabby",
        "n02510455": "giant panda",
        "n07753592": "banana",
        "n15075141": "toilet tissue",
    }
    assert {synset: named[synset] for synset in known} == known
