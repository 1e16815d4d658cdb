# SPDX-License-Identifier: Apache-2.0
"""How images of the suites are prepared for weights, and the published numbers beside them."""

from mambaout_jax.config_file import save_config
from mambaout_jax.data.sets.suites import CORRUPTIONS
from mambaout_jax.evaluation import suites
from mambaout_jax.evaluation.suites import ALEXNET_ERRORS, format_result, suite_config
from mambaout_jax.preprocessing import Preprocessing


def published(source, config):
    return suites._published(source, Preprocessing.of(config.data))


def test_size_brings_the_published_crop_and_targets():
    name = "mambaout_base_tall_rw.sw_e500_in1k"
    for overrides, crop, top1, sketch in (
        ((), 0.95, 84.436, 40.431),
        (("--config.data.image_size=288",), 1.0, 84.988, 39.337),
    ):
        config = suite_config(name, overrides)
        assert config.data.crop_fraction == crop
        targets = published(name, config)
        assert targets["val"]["top1"] == top1
        assert targets["sketch"] == {"top1": sketch}
    config = suite_config(name, ["--config.data.crop_fraction=0.9"])
    assert config.data.crop_fraction == 0.9
    assert published(name, config) == {}
    for key in ("hf_hub:timm/mambaout_tiny.in1k", "mambaout_tiny.in1k"):
        targets = published(key, suite_config(key, ["--config.data.image_size=288"]))
        assert targets == {"val": {"top1": 83.452, "top5": 96.540}, "real": {"top1": 88.486},
                           "v2": {"top1": 72.540}, "a": {"top1": 33.000}, "r": {"top1": 45.530},
                           "sketch": {"top1": 33.099}}  # fmt: skip


def test_published_targets_stand_beside_the_result():
    row = suites.SuiteResult("v2", 10_000, {"top1": 71.81, "loss": 1.25}, {"top1": 71.83}, ("n",))
    assert format_result(row).split("  ", 1)[1].strip() == (
        "10,000 images  top-1 71.810 (published 71.830)  loss 1.250  n"
    )


def test_a_run_is_prepared_as_it_was_trained(tmp_path):
    config = suite_config("mambaout_femto.in1k")
    config.data.crop_fraction, config.data.image_size = 0.9, 64
    save_config(config, tmp_path / "config.json")
    made = suite_config(tmp_path)
    assert (made.data.crop_fraction, made.data.image_size) == (0.9, 64)


def test_alexnet_errors_are_those_of_the_paper():
    # Hendrycks and Dietterich 2019, Table 1, rounded to a percent.
    table = (89, 89, 92, 82, 83, 79, 80, 87, 83, 82, 56, 85, 65, 72, 61)
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS
    assert tuple(round(error) for error in ALEXNET_ERRORS.values()) == table
