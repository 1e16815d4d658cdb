# SPDX-License-Identifier: Apache-2.0
"""Settings, what follows from them, and what is wrong with them."""

import contextlib

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
        ("data.mean", (0.5,), r"data\.mean=\(0\.5,\) has 1 values for data\.channels=3"),
        ("seed", -1, r"seed=-1 is not allowed; it must be a whole number from 0"),
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
    words = r"6 updates of which 40 warm up; .* schedule\.total_epochs=3\.0 or schedule\.warmup"
    with pytest.raises(ValueError, match=words):
        resolve(config, 2048)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"detection.max_instances": 50}, r"detection\.max_instances=50 does nothing with task="
         "'classification'; leave the default, or set --config.task to what reads it"),
        ({"task": "detection", "augment.mixup_alpha": 0.8, "loss.label_smoothing": 0.0},
         r"augment\.mixup_alpha=0\.8, loss\.label_smoothing=0\.0 do nothing with task='detec"),
        ({"task": "segmentation", "detection.crop_probability": 0.5},
         r"detection\.crop_probability=0\.5 does nothing with task='segmentation'"),
        ({"task": "detection", "data.image_size": 1400},
         r"detection\.long_side=1333 is below the shorter side of 1400 pixels; raise it, or lower "
         r"data\.image_size and multi_scale"),
        ({"task": "detection", "detection.multi_scale": (480, 1344)},
         "is below the shorter side of 1344 pixels"),
        ({"task": "segmentation", "segmentation.long_side": 128},
         r"segmentation\.long_side=128 is below the shorter side of 224 pixels; raise it, or lower "
         r"data\.image_size$"),
        ({"task": "segmentation", "segmentation.evaluation_mode": "slide"},
         r"slide_stride=341 leaves gaps between crops of data\.image_size=224; set it to that"),
        ({"schedule.decay": "steps"}, r"milestones_epochs=\(\) does not go with .*decay='steps'; "),
        ({"schedule.milestones_epochs": (8.0,)}, r"\(8\.0,\) does not go with .*decay='cosine'; "),
    ],
)  # fmt: skip
def test_settings_of_another_task_and_sizes_that_do_not_fit_are_errors(config, settings, words):
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=words):
        validate(config, 8)


def test_settings_of_the_dense_tasks_are_allowed_with_them(config):
    config.task = "detection"
    config.augment.flip_probability = 0.0
    config.detection.multi_scale = (480, 800)
    validate(config, 8)
    config = default_config()
    config.task = "segmentation"
    config.data.image_size = 512
    config.segmentation.evaluation_mode = "slide"
    config.segmentation.evaluation_scales = (0.5, 1)
    validate(config, 8)


def test_milestones_are_updates_in_order(config):
    config.schedule.decay = "steps"
    config.schedule.total_epochs = 12.0
    config.schedule.warmup_steps = 1000
    config.schedule.milestones_epochs = (8, 11)
    config.batch_size = 16
    assert resolve(config, 7330 * 16).milestones == (58_640, 80_630)
    config.schedule.milestones_epochs = (11, 8)
    with pytest.raises(ValueError, match=r"\(11, 8\) are the updates \(80630, 58640\) of 87,960"):
        resolve(config, 7330 * 16)
    config.schedule.milestones_epochs = (8, 11)
    config.schedule.total_steps = 1_000
    with pytest.raises(ValueError, match=r"below the end: .* schedule\.total_steps=1000"):
        resolve(config, 7330 * 16)


def test_more_updates_than_can_be_counted_are_an_error(config):
    config.schedule.cooldown_epochs = 1e6
    config.batch_size = 8
    with pytest.raises(ValueError, match=r"has 160,048,000,000 updates; it may have 2,147,483,647"):
        resolve(config, 1_280_000)


@pytest.mark.parametrize(("crop", "refused"), [("shift", True), ("random_resized", False)])
def test_shift_leaves_a_part_of_the_image(config, crop, refused):
    config.data.image_size = 16
    config.augment.crop = crop
    config.augment.shift_pixels = 64
    words = r"shift_pixels=64 can move the whole image of data\.image_size=16 out of sight"
    with pytest.raises(ValueError, match=words) if refused else contextlib.nullcontext():
        validate(config, 8)


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"batch_sizes": 3}', "batch_sizes"),
        ('{"batch_size": ', "Expecting value"),
        ("[1, 2]", "it holds no settings by name"),
        ('{"batch_size": null}', r"batch_size=None is not allowed; it must be a whole number"),
        ('{"optimizer": {"b1": NaN}}', r"optimizer\.b1=nan is not allowed; it must be a number"),
        ('{"optimizer": {"b1": 1%s}}' % ("0" * 400), "int too large"),
    ],
)  # fmt: skip
def test_unknown_settings_in_json_are_refused(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    damaged = "is damaged" if words == "Expecting value" else "does not fit this version's settings"
    with pytest.raises(ValueError, match=rf"json {damaged}.*{words}"):
        load_config(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir of a training run"):
        load_config(tmp_path / "nowhere.json")


def test_lists_and_tuples_are_the_same_setting(config, tmp_path):
    config.optimizer.decay_rules = [["/bias$", False], ("kernel", True)]
    with config.model.options.unlocked():
        config.model.options.depths = [1, [2, 3]]
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json")
    assert loaded.model.options.depths == (1, (2, 3))
    assert changed_settings(loaded, config) == changed_settings(config, loaded) == {}
    config.model.options.depths[0] = 5
    assert changed_settings(loaded, config) == {"model.options.depths": ((1, (2, 3)), (5, (2, 3)))}


def test_changed_settings_are_found_by_dotted_name(config):
    other = default_config()
    other.data.source = "digits"
    other.optimizer.learning_rate = 0.5
    assert changed_settings(config, other) == {"optimizer.learning_rate": (1e-3, 0.5)}
