# SPDX-License-Identifier: Apache-2.0
"""Settings, what follows from them, and what is wrong with them."""

import pytest

from mambaout_jax.config import default_config, resolve, validate
from mambaout_jax.config_file import changed_settings, load_config, save_config


@pytest.fixture
def config():
    config = default_config()
    config.data.source = "digits"
    return config


def test_defaults_are_valid_until_one_is_wrong():
    config = default_config()
    validate(config, 8)
    config.batch_size = 1023
    with pytest.raises(ValueError, match="batch_size=1023 does not divide into 8 devices"):
        validate(config, 8)


def test_unknown_key_is_an_error(config):
    with pytest.raises(AttributeError, match="batchsize"):
        config.batchsize = 3


def test_durations_and_rate_of_the_papers_recipe(config):
    config.batch_size = 4096
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_batch_size = 1024
    config.accumulate_steps = 4
    resolved = resolve(config, 1_281_167)
    assert resolved.steps_per_epoch == 312
    assert resolved.total_steps == 300 * 312
    assert resolved.warmup_steps == 20 * 312
    assert resolved.evaluate_every == resolved.checkpoint_every == 312
    assert resolved.micro_batch_size == 1024
    assert resolved.learning_rate == pytest.approx(4e-3)


def test_steps_replace_epochs(config):
    config.schedule.total_steps = 100
    config.schedule.warmup_steps = 0
    config.checkpoint.every_steps = 7
    resolved = resolve(config, 2048)
    assert (resolved.total_steps, resolved.warmup_steps, resolved.checkpoint_every) == (100, 0, 7)
    assert resolved.learning_rate == 1e-3  # unscaled without a reference batch


def test_fractions_of_an_epoch_round_to_updates(config):
    config.batch_size = 64
    config.schedule.total_epochs = 25.0
    config.schedule.warmup_epochs = 2.5
    config.evaluation.every_epochs = 0.01
    resolved = resolve(config, 1438)
    assert (resolved.steps_per_epoch, resolved.total_steps, resolved.warmup_steps) == (22, 550, 55)
    assert resolved.evaluate_every == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.dtype", "float16", r"allowed are 'float32', 'bfloat16'"),
        ("augment.crop", "ten", r"augment\.crop='ten' .* 'random_resized', 'shift', 'none'"),
        ("data.image_size", 0, r"data\.image_size=0 is out of range; it must be from 1 to 8192"),
        ("data.image_size", 100_000, r"data\.image_size=100000 is out of range; .* from 1 to 8192"),
        ("data.max_pixels", 0, r"data\.max_pixels=0 is out of range; it must be at least 1"),
        ("evaluation.batch_size", 2**32, r"batch_size=4294967296 .* from 1 to 65536"),
        ("optimizer.clip_norm", -1.0, r"optimizer\.clip_norm=-1\.0 .* at least 0"),
        ("loss.label_smoothing", 1.5, r"loss\.label_smoothing=1\.5 .* from 0 to 1"),
        ("model.drop_path", 1.5, r"model\.drop_path=1\.5 .* from 0 to 1"),
        ("data.crop_fraction", 0.0, r"data\.crop_fraction=0\.0 .* above 0"),
        ("data.mean", (0.5,), r"data\.mean=\(0\.5,\) has 1 values for data\.channels=3"),
        ("seed", -1, r"seed=-1 is out of range; it must be at least 0"),
        ("augment.scale", (0.3,), r"augment\.scale=\(0\.3,\) must be two numbers above 0"),
        ("augment.ratio", (2.0, 1.0), r"augment\.ratio=\(2\.0, 1\.0\) must be two numbers"),
        ("mesh.fsdp", 3, r"mesh\.fsdp=3 does not divide the 8 devices; allowed are \[1, 2, 4, 8\]"),
        ("batch_size", 100, r"batch_size=100 does not divide into 8 devices x 1 .* 96 or 104"),
        ("batch_size", 4, r"batch_size=4 does not divide .* set --config\.batch_size to 8"),
        ("augment.mix_group_size", 48, r"mix_group_size=48 does not divide .* 1024"),
        ("evaluation.batch_size", 9, r"evaluation\.batch_size=9 .* --config\.evaluation.*=16"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(config, name, value, message):
    *sections, key = name.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[key] = value
    with pytest.raises(ValueError, match=message):
        validate(config, 8)


def test_batch_larger_than_the_data_and_long_warmup_are_errors(config):
    with pytest.raises(ValueError, match=r"batch_size=1024 is larger .* 500 or less"):
        resolve(config, 500)
    config.schedule.total_epochs = 3.0
    with pytest.raises(ValueError, match="6 updates of which 40 warm up"):
        resolve(config, 2048)


def test_config_survives_json(config, tmp_path):
    config.augment.scale = (0.5, 1.0)
    config.schedule.total_steps = 12
    config.model.options.unlock()
    config.model.options.depths = (1, 2)
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json")
    assert changed_settings(config, loaded) == {}
    assert loaded.augment.scale == (0.5, 1.0)
    assert loaded.model.options.depths == (1, 2)
    assert loaded.schedule.warmup_steps is None
    assert loaded.model.drop_path is None


def test_unknown_settings_in_json_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"batch_sizes": 3}')
    with pytest.raises(ValueError, match=r"does not fit this version's settings.*batch_sizes"):
        load_config(path)
    path.write_text('{"batch_size": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_config(path)
    with pytest.raises(FileNotFoundError, match="--workdir of a training run"):
        load_config(tmp_path / "nowhere.json")


def test_changed_settings_are_found_by_dotted_name(config):
    other = default_config()
    other.data.source = "digits"
    other.optimizer.learning_rate = 0.5
    assert changed_settings(config, other) == {"optimizer.learning_rate": (1e-3, 0.5)}
