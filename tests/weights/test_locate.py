# SPDX-License-Identifier: Apache-2.0
"""What a source is understood to be; nothing is downloaded here. The hub: tests/test_load.py."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from support.tiny_run import get_config

from mambaout_jax.config_file import save_config
from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.models import model_options
from mambaout_jax.weights.load import describe_source
from mambaout_jax.weights.locate import locate


def own_file(path, **metadata):
    safetensors.numpy.save_file({"params/x": np.zeros(1, np.float32)}, path, metadata)
    return path


def test_name_is_the_given_one_then_the_metadatas_then_the_files(tmp_path):
    path = own_file(tmp_path / "mambaout_femto.my_run.safetensors")
    assert locate(path).name == "mambaout_femto"
    own_file(path, model="mambaout_kobe")
    assert locate(path).name == "mambaout_kobe"
    assert locate(path, "mambaout_base").name == "mambaout_base"
    assert locate("https://host/dir/mambaout_tiny.pth?x=1").name == "mambaout_tiny"
    assert locate("mambaout_base_tall_rw.sw_e500_in1k").name == "mambaout_base_tall_rw"


def test_name_that_nothing_tells_must_be_given(tmp_path):
    path = own_file(tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match=r"best\.safetensors does not say.*give name=.*femto"):
        locate(path)
    with pytest.raises(ValueError, match=r"'resnet50' is none"):
        locate(own_file(path, model="resnet50"))
    with pytest.raises(ValueError, match="did you mean mambaout_tiny"):
        locate(path, "mambaout_tony")


def test_file_in_the_home_directory(tmp_path, monkeypatch):
    own_file(tmp_path / "mambaout_tiny.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = locate("~/mambaout_tiny.safetensors")
    assert found.fetch() == tmp_path / "mambaout_tiny.safetensors"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mambaout_femto", "mean mambaout_femto.in1k or mambaout_femto.official"),
        ("mambaout_tiny.in2k", "mean mambaout_tiny.in1k"),
        (
            "nowhere/at/all",
            "neither a file nor a directory nor a key of the catalog.*hf_hub:.*https",
        ),
    ],
)
def test_unknown_source_gets_the_nearest_or_what_is_allowed(source, message):
    with pytest.raises(FileNotFoundError, match=message):
        locate(source)


def test_model_options_cover_the_models_section():
    config = get_config()
    config.model.conv_implementation = "lax"
    config.model.dtype = "bfloat16"
    assert model_options(config) == {
        "image_size": 16,
        "in_chans": 1,
        "dtype": jnp.bfloat16,
        "drop_path": None,
        "remat": False,
        "conv_implementation": "lax",
        "depths": (1, 1),
        "dims": (8, 16),
    }
    covered = {"name", "drop_path", "dtype", "remat", "conv_implementation", "options"}
    about_weights = {"pretrained", "reset_head"}
    assert set(config.model) == covered | about_weights
    assert isinstance(config.model, ml_collections.ConfigDict)


def test_description_of_a_run_is_its_evaluation(tmp_path):
    config = get_config()
    config.data.crop_fraction = 0.9
    config.data.crop_mode = "squash"
    config.data.interpolation = "bilinear"
    save_config(config, tmp_path / "config.json")
    found = describe_source(tmp_path)
    assert (found.image_size, found.mean, found.std) == (16, (0.5,), (0.5,))
    assert (found.crop_fraction, found.crop_mode) == (0.9, "squash")
    assert (found.interpolation, found.class_names) == ("bilinear", None)
    assert describe_source(tmp_path, image_size=24).image_size == 24
    assert locate(tmp_path).name == "mambaout_micro"


@pytest.mark.parametrize("content", [b"", b'["a", "b', b'["a", "\xff"]', b"{}", b"[1, 2]"])
def test_damaged_class_names_of_a_run_are_named_with_the_cure(tmp_path, content):
    save_config(get_config(), tmp_path / "config.json")
    path = tmp_path / "classes.json"
    path.write_bytes(content)
    words = rf"^{path} is damaged \(.*\); put back a copy, or run the command that trained this run"
    with pytest.raises(ValueError, match=words):
        describe_source(tmp_path)


def test_an_address_that_nothing_can_be_read_from_is_refused():
    with pytest.raises(ValueError, match=r"^gs://bucket/a\.safetensors is an address"):
        locate("gs://bucket/a.safetensors")


def test_description_of_files_is_what_is_published_for_the_model(tmp_path):
    path = own_file(tmp_path / "mambaout_tiny.safetensors")
    found = describe_source(path)
    assert (found.image_size, found.crop_fraction, found.interpolation) == (224, 1.0, "bicubic")
    assert found.class_names == CLASS_NAMES
    assert describe_source(path, "mambaout_base_tall_rw").crop_fraction == 0.95
    assert describe_source(path, "mambaout_base_tall_rw", 288).crop_fraction == 1.0
    micro = describe_source(path, "mambaout_micro")
    assert (micro.image_size, micro.class_names) == (32, None)


def test_description_of_the_catalog_is_the_published_one():
    found = describe_source("mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k")
    assert (found.image_size, found.crop_mode) == (384, "squash")
    assert describe_source("hf_hub:timm/mambaout_base_tall_rw.sw_e500_in1k").crop_fraction == 0.95
    assert describe_source("mambaout_base_plus_rw.sw_e150_in12k").class_names is None
