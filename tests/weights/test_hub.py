# SPDX-License-Identifier: Apache-2.0
"""timm's config.json; loading a folder with one is tested in test_load.py."""

import pytest

from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.weights.hub import model_of, preprocessing_of, read_config


def config(name="mambaout_tiny", **arguments):
    return {"architecture": name, "model_args": arguments}


def test_options_that_change_the_model_are_understood():
    given = config(num_classes=3, in_chans=1, global_pool="avg", depths=[1, 1], dims=[8, 16])
    assert model_of(given, "x") == (
        "mambaout_tiny",
        {"in_chans": 1, "depths": (1, 1), "dims": (8, 16)},
    )
    name = "deit_tiny_patch16_224"
    given = config(name, img_size=384, global_pool="token", drop_rate=0.1, drop_path_rate=0.2)
    assert model_of(given, "x") == (name, {"image_size": 384})
    assert model_of({"architecture": name, "global_pool": "token"}, "x") == (name, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config("resnet50"), r"of me/x has architecture='resnet50'.*none of \['mambaout_femto'"),
        (config(act_layer="relu"), r"model_args=\{'act_layer': 'relu'\}: mambaout_tiny has no op"),
        (config(global_pool="max"), "global_pool='max'; mambaout_tiny has 'avg' here and no other"),
        (config("deit_tiny_patch16_224", global_pool="avg"), "has 'token' here and no other"),
        ({"architecture": "mambaout_tiny", "global_pool": ""}, "global_pool=''"),
    ],
)
def test_what_is_not_understood_is_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        model_of(given, "me/x")


def test_config_of_another_kind_is_not_timms(tmp_path):
    path = tmp_path / "config.json"
    assert read_config(path) is None
    path.write_text('{"model": {}}')
    assert read_config(path) is None
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON: .*line 1"):
        read_config(path)


def test_preprocessing_stands_inside_or_in_older_files_outside():
    told = {"input_size": [3, 96, 96], "crop_pct": 0.9, "interpolation": "bilinear"}
    for given in ({"pretrained_cfg": told}, told):
        found = preprocessing_of(given, "x", Preprocessing(224), None)
        assert (found.image_size, found.crop_fraction, found.interpolation) == (96, 0.9, "bilinear")
    assert preprocessing_of(told, "x", Preprocessing(224), 64).image_size == 64
    with pytest.raises(ValueError, match=r"mean=.* for a model of 1 channels"):
        preprocessing_of(config(in_chans=1), "x", Preprocessing(224), None)
