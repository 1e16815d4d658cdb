# SPDX-License-Identifier: Apache-2.0
"""The catalog: complete, consistent with the models, and the published numbers."""

import re

import pytest

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.models import list_models
from mambaout_jax.weights.catalog import (
    CATALOG,
    find_weights,
    model_table,
    weights_of,
)
from mambaout_jax.weights.convert import namings

UNPUBLISHED = {
    "test_mambaout",
    "mambaout_micro",
    *list_models("*_ssm"),
    *list_models("isotropic_*"),
}

# Where authors released what `<model>.official` names.
RELEASES = {
    "mambaout": "https://github.com/yuweihao/MambaOut/releases/download/model/mambaout_",
    "poolformer": "https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s24.",
    "caformer": "https://huggingface.co/sail/dl/resolve/main/caformer/caformer_",
    "convformer": "https://huggingface.co/sail/dl/resolve/main/convformer/convformer_",
    "inception_next": "https://github.com/sail-sg/inceptionnext/releases/download/model/",
    "moganet": "https://github.com/Westlake-AI/MogaNet/releases/download/moganet-in1k-weights/",
    "iformer": "https://huggingface.co/sail/dl2/resolve/main/iformer/iformer_",
    "transnext": "https://huggingface.co/DaiShiResearch/transnext-",
}


@pytest.mark.parametrize("key", CATALOG)
def test_row_names_a_model_a_source_and_a_naming_that_exist(key):
    weights = CATALOG[key]
    model, _, tag = key.partition(".")
    assert weights.model == model
    assert weights.model in list_models()
    assert weights.naming in namings(model)
    if tag == "official":
        release = next(url for family, url in RELEASES.items() if model.startswith(family))
        assert weights.source.startswith(release)
        assert weights.source.endswith((".pth", ".pth.tar"))
        assert model.split("_")[0] in weights.source
    else:
        assert weights.source == f"hf_hub:timm/{key}"
    assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)


def test_every_mambaout_has_weights_or_is_known_to_have_none():
    for model in list_models("*mambaout*"):
        assert bool(weights_of(model)) == (model not in UNPUBLISHED), model


def test_published_accuracies_are_those_of_the_papers_models():
    # Paper, Table 1, and the README's Kobe.
    paper = {"femto": 78.9, "kobe": 80.0, "tiny": 82.7, "small": 84.1, "base": 84.2}
    for size, top1 in paper.items():
        (official,) = CATALOG[f"mambaout_{size}.official"].results
        assert (official.image_size, official.top1, official.top5) == (224, top1, None)
        # timm evaluates the same weights, and publishes more digits.
        timm = CATALOG[f"mambaout_{size}.in1k"].results
        assert [result.image_size for result in timm] == [224, 288]
        assert round(timm[0].top1, 1) == top1
        assert timm[0].top1 < timm[1].top1 < timm[1].top5 < 100


def test_deit_has_weights_near_the_accuracies_of_its_paper():
    # Touvron et al., Table 5, with a crop of 0.875; timm evaluates the same weights with 0.9.
    paper = {"tiny": 72.2, "small": 79.8, "base": 81.8}
    for size, top1 in paper.items():
        (weights,) = weights_of(f"deit_{size}_patch16_224").values()
        (result,) = weights.results
        assert weights.preprocessing().crop_fraction == result.crop_fraction == 0.9
        assert abs(result.top1 - top1) < 0.2
        assert result.top1 < result.top5 < 100


def test_find_weights_takes_patterns():
    assert list(find_weights("mambaout_tiny*")) == ["mambaout_tiny.in1k", "mambaout_tiny.official"]
    assert len(find_weights("*.official")) == 23
    assert len(find_weights()) == len(CATALOG) == 38
    assert find_weights("resnet*") == {}


def test_class_names_stand_at_their_labels():
    names = CLASS_NAMES
    assert len(names) == len(set(names)) == 1000
    known = {
        0: "tench",
        1: "goldfish",
        7: "cock",
        134: "crane bird",
        207: "golden retriever",
        281: "tabby",
        285: "Egyptian cat",
        388: "giant panda",
        404: "airliner",
        517: "crane",
        638: "maillot",
        639: "maillot tank suit",
        817: "sports car",
        954: "banana",
        999: "toilet tissue",
    }
    assert {label: names[label] for label in known} == known


def test_table_has_published_accuracies_of_models_without_weights():
    lines = {line.split()[0]: line.split() for line in model_table().splitlines() if line.strip()}
    assert lines["vim_tiny"][-4:] == ["76.1", "none", "known", "here"]
    assert lines["mambaout_tiny_ssm"][-4:] == ["-", "none", "known", "here"]
    assert lines["mambaout_tiny"][-2:] == ["82.742", "mambaout_tiny.in1k"]
