# SPDX-License-Identifier: Apache-2.0
"""What each setting may be: every one has a rule, and every rule says what it refuses and why."""

import math

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support import tiny_run

from mambaout_jax.cli.errors import report
from mambaout_jax.config import default_config
from mambaout_jax.kernels.depthwise_conv import IMPLEMENTATIONS
from mambaout_jax.settings import CONV_IMPLEMENTATIONS, RULES, check_settings, rule_of_field
from mambaout_jax.train.preview import describe

NEVER = (math.nan, math.inf, -math.inf, -1, 2**64, 10**5000, None, "", b"bytes", "\0", (), [None],
         ("a",), object(), True, "x" * 5000)  # fmt: skip

# One wrong value per setting, most of them near what is allowed.
WRONG = {
    "seed": 2**32,
    "task": None,
    "batch_size": None,
    "accumulate_steps": 0,
    "on_nan": "ignore",
    "require_accelerator": 1,
    "model.name": b"mambaout_tiny",
    "model.drop_path": 1.0,
    "model.dtype": "float16",
    "model.remat": "yes",
    "model.conv_implementation": None,
    "model.options": (1, 2),
    "model.pretrained": None,
    "model.reset_head": 0,
    "data.source": 5,
    "data.path": "photos\0",
    "data.max_pixels": 0,
    "data.image_size": 0,
    "data.channels": True,
    "data.mean": (123.7, 116.3, 103.5),
    "data.std": (0.2, 0, 0.2),
    "data.validation_fraction": -0.1,
    "data.crop_fraction": 0.0,
    "data.crop_mode": "centre",
    "data.interpolation": "nearest",
    "data.decoder": "turbo",
    "data.num_threads": 0,
    "data.num_workers": -1,
    "data.prefetch_batches": 0,
    "data.max_corrupt_fraction": 1.5,
    "augment.crop": "ten",
    "augment.scale": (0.3,),
    "augment.ratio": (2.0, 1.0),
    "augment.shift_pixels": -1,
    "augment.random_interpolation": None,
    "augment.flip_probability": 2,
    "augment.rand_augment_layers": 1.5,
    "augment.rand_augment_magnitude": 11,
    "augment.rand_augment_deviation": math.inf,
    "augment.rand_augment_probability": math.nan,
    "augment.color_jitter": -0.4,
    "augment.mixup_alpha": -0.8,
    "augment.cutmix_alpha": math.inf,
    "augment.mix_probability": 1.1,
    "augment.cutmix_share": "half",
    "augment.mix_group_size": -128,
    "augment.erase_probability": 25,
    "augment.erase_after_mixing": "False",
    "detection.long_side": 0,
    "detection.multi_scale": (480, 16),
    "detection.crop_probability": 1.5,
    "detection.max_instances": 0,
    "detection.sampled_regions": 3,
    "segmentation.long_side": 2048.0,
    "segmentation.scale": (2.0, 0.5),
    "segmentation.max_class_share": 0,
    "segmentation.photometric": "yes",
    "segmentation.auxiliary_weight": -0.4,
    "segmentation.evaluation_mode": "sliding",
    "segmentation.slide_stride": 0,
    "segmentation.evaluation_scales": (),
    "segmentation.evaluation_flip": 1,
    "loss.label_smoothing": 1.0,
    "optimizer.learning_rate": math.inf,
    "optimizer.learning_rate_batch_size": -1,
    "optimizer.b1": 1.5,
    "optimizer.b2": math.inf,
    "optimizer.epsilon": -1,
    "optimizer.weight_decay": -0.05,
    "optimizer.clip_norm": math.nan,
    "optimizer.decay_rules": (("(", True),),
    "optimizer.layer_decay": 0,
    "optimizer.freeze": ("(",),
    "schedule.decay": "poly",
    "schedule.milestones_epochs": (0.0, 8.0),
    "schedule.decay_factor": 1.1,
    "schedule.total_epochs": 1e308,
    "schedule.total_steps": 0,
    "schedule.warmup_epochs": -5.0,
    "schedule.warmup_steps": -5,
    "schedule.cooldown_epochs": math.inf,
    "schedule.cooldown_steps": -12,
    "schedule.warmup_prefix": 1,
    "schedule.warmup_reaches_peak": 1,
    "schedule.per_epoch": None,
    "schedule.warmup_learning_rate": -1e-6,
    "schedule.final_learning_rate": math.nan,
    "ema.decay": 1.0,
    "mesh.fsdp": 0,
    "evaluation.batch_size": 2**32,
    "evaluation.every_epochs": 0,
    "evaluation.every_steps": 0,
    "checkpoint.every_epochs": -1,
    "checkpoint.every_steps": -1,
    "checkpoint.keep": 0,
    "log.every_steps": False,
    "log.tensorboard": 1,
    "log.wandb": None,
    "log.wandb_project": "a/b",
}


def with_setting(name, value, config=None):
    """A config, or the default one, with any value there, also of another type."""
    config = config or default_config()
    *section, key = name.split(".")
    holder = config[section[0]] if section else config
    with holder.unlocked():
        del holder[key]  # and with it its type
        holder[key] = value
    return config


def names(config, prefix=""):
    for key in config:
        if hasattr(config[key], "keys") and f"{prefix}{key}" != "model.options":
            yield from names(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_setting_has_a_rule_and_a_wrong_value_here():
    assert sorted(RULES) == sorted(names(default_config())) == sorted(WRONG)


def test_defaults_are_allowed():
    check_settings(default_config())


@pytest.mark.parametrize("name", RULES)
def test_wrong_value_is_named_with_what_is_allowed(name):
    with pytest.raises(ValueError, match="is not allowed") as error:
        check_settings(with_setting(name, WRONG[name]))
    expected = f"{name}={WRONG[name]!r} is not allowed; it must be {RULES[name].allowed}"
    assert str(error.value) == expected


@pytest.mark.parametrize("name", RULES)
def test_rules_judge_any_value(name):
    """Without an exception of their own, and what follows is a sentence."""
    for value in NEVER:
        if RULES[name].accepts(value):
            continue
        with pytest.raises(ValueError, match=r"is not allowed; it must be") as error:
            check_settings(with_setting(name, value))
        assert str(error.value).startswith(f"{name}=")
        assert len(str(error.value)) < 500
    refused = [value for value in NEVER if not RULES[name].accepts(value)]
    assert len(refused) >= 5
    for value in (math.nan, math.inf, -math.inf):
        assert not RULES[name].accepts(value)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "number" in rule.allowed])
def test_truth_is_no_number(name):
    assert not RULES[name].accepts(True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32 - 1),
        ("model.drop_path", None),
        ("data.mean", (0, 1.0, 0.5)),
        ("data.mean", [0.5, 0.5, 0.5]),
        ("optimizer.decay_rules", (("/bias$", False), ["kernel", True])),
        ("optimizer.freeze", ("/backbone/",)),
        ("schedule.total_steps", None),
        ("schedule.warmup_steps", 0),
        ("evaluation.every_epochs", 0.01),
        ("optimizer.learning_rate", 1),
    ],
)
def test_what_is_allowed_passes(name, value):
    check_settings(with_setting(name, value))


@pytest.mark.parametrize(
    "value",
    [math.nan, b"x", {"deeper": 1}, {1, 2}, object(), len, 1j, (1, (2, math.inf))],
    ids=lambda value: type(value).__name__,
)
def test_options_are_what_json_can_hold(value):
    config = default_config()
    with config.unlocked():
        config.model.options.routes = value
    with pytest.raises(ValueError, match=r"model\.options=.* it must be fields of the model's"):
        check_settings(config)


def test_implementations_are_those_of_the_kernel():
    assert CONV_IMPLEMENTATIONS == IMPLEMENTATIONS


def test_config_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"a dict is no config; begin with default_config\(\)"):
        check_settings(default_config().to_dict())


def test_missing_and_unknown_settings_are_named():
    config = default_config()
    with config.unlocked():
        del config.optimizer.b1
        del config.ema
    with pytest.raises(ValueError, match=r"the config lacks optimizer\.b1, ema\.decay; begin"):
        check_settings(config)
    config = default_config()
    with config.unlocked():
        config.optimizer.beta1 = 0.5
    words = r"there is no setting optimizer\.beta1; did you mean optimizer\.b1\?"
    with pytest.raises(ValueError, match=words):
        check_settings(config)
    with config.unlocked():
        del config.optimizer
        config.optimizer = 5
    with pytest.raises(ValueError, match=r"the config lacks optimizer\.learning_rate, "):
        check_settings(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seed", "a whole number from 0 to 4,294,967,295"),
        ("model.drop_path", "None, or a number from 0 and below 1"),
        ("optimizer.layer_decay", "a number above 0 and at most 1"),
        ("optimizer.learning_rate", "a number from 0 to 1,000,000"),
        ("data.channels", "one of 1, 3"),
        ("segmentation.evaluation_scales", "a tuple, each a number from 0.1 to 10"),
        ("detection.multi_scale", "a tuple of none or more, each a whole number from 32 to 8,192"),
        ("augment.scale", "two numbers above 0 and at most 1, the smaller one first, such as "
         "(0.25, 1)"),
        ("data.mean", "a tuple with, for each channel, a number from 0 to 1; pixel values count "
         "from 0 to 1 here, so divide what is given for 0 to 255 by 255"),
    ],
)  # fmt: skip
def test_words_of_a_rule(name, words):
    assert RULES[name].allowed == words


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [
        (int, [1, 7], [0, -1, 1.0, True, None, "7", math.nan, 2**40]),
        (float, [0, 1, 0.5], [-1, math.nan, math.inf, True, "1", None]),
        (str, ["gelu"], [None, 5, b"gelu"]),
        (bool, [True], [1, None, "True"]),
        (tuple[int, ...], [(1, 2), [3]], [(), 5, (0, 1), (1.0,), ("a",), (True,), None]),
        (float | None, [None, 1e-6], ["none", math.nan]),
        (str | None, [None, "snake"], [5]),
    ],
)
def test_fields_of_a_model_are_judged_by_their_type(kind, allowed, refused):
    rule = rule_of_field("a", kind)
    assert [value for value in allowed if not rule.accepts(value)] == []
    assert [value for value in refused if rule.accepts(value)] == []


def test_other_fields_of_a_model_are_left_to_programs():
    assert rule_of_field("dtype", object) is None
    assert rule_of_field("image_size", int | tuple[int, int]) is None


ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 2**31, 2**32, 2**63, 10**5000, 0.0, -0.0, 0.5,
                     1.0, 1e-308, 1e308, math.nan, math.inf, -math.inf, "", "0", "(", "[", "none",
                     "\ud800", "\0", b"x", (), [], ((),), "imagenet", "folder", "auto", "float32"]),
    st.integers(-5, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.floats(), st.integers(-2, 2), st.text(max_size=2)), max_size=3),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=2).map(tuple),
)  # fmt: skip
OPTIONS = ("depths", "dims", "kernel_size", "expansion_ratio", "conv_ratio", "activation", "routes",
           "token_mixer", "state_size", "heads", "causal", "layer_scale", "stem_mid_norm",
           "dropout", "scan_implementation", "no_such_option")  # fmt: skip


@pytest.mark.slow
@given(name=st.sampled_from([*RULES, *(f"model.options.{name}" for name in OPTIONS)]), value=ODD)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # a run of each value as it comes: seconds, not minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_value_is_accepted_or_refused_in_a_sentence(tmp_path, monkeypatch, name, value):
    """By the dry run, which does all that comes before the training, and makes no file."""
    monkeypatch.chdir(tmp_path)
    config = tiny_run.get_config()
    option = name.removeprefix("model.options.")
    if option != name:
        options = {**config.model.options.to_dict(), option: value}
        config = with_setting("model.options", ConfigDict(options), config)
    else:
        config = with_setting(name, value, config)
    error = error_of(config)
    if error is not None:
        assert report(error) in (1, 2), repr(error)
        # Without one spelling of a duration it is the other that is wrong; kernels have an argument
        # `implementation`.
        words = name.rpartition(".")[2].removesuffix("_steps").removeprefix("scan_")
        assert words in str(error)
    assert list(tmp_path.iterdir()) == []


def error_of(config):
    """What the dry run raises; None where it describes the run."""
    try:
        assert describe(config)
    except Exception as error:
        return error
    return None
