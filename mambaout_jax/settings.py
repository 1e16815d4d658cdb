# SPDX-License-Identifier: Apache-2.0
"""What each setting may be: one rule for each, checked before anything is opened or made.

A rule judges a setting alone. How settings fit together, the data and the devices is checked where
these are known: `config.validate`, `config.resolve`, `tasks.setup`. Names of models, tasks and data
sets are text here; their own tables know which there are.

Limits that look arbitrary keep a number inside what computes with it: float32, 32-bit counters, the
threads and the memory of a machine.
"""

import difflib
import math
import re
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

CROP_MODES = ("center", "squash")
CROPS = ("random_resized", "shift", "none")
INTERPOLATIONS = ("bilinear", "bicubic")
DECODERS = ("pillow", "opencv")
DTYPES = ("float32", "bfloat16")
ON_NAN = ("stop", "roll back")
DECAYS = ("cosine", "linear", "steps")
EVALUATION_MODES = ("whole", "slide")
MAX_IMAGE_SIZE = 8192  # pixels, height and width of what a model sees
MAX_PIXELS = 178_956_970  # of an image file, by default: where Pillow, too, suspects an attack
MAX_EVALUATION_BATCH = 2**16
CONV_IMPLEMENTATIONS = ("auto", "lax", "shift", "pallas")  # of `kernels.depthwise_conv`

_COUNTER = 2**31 - 1  # the largest update or example that 32 bits can count
_PIXELS = 2**14
_WIDEST = 2**16  # channels of a layer, and whatever else a model counts
_EPOCHS = 1_000_000
_RATE = 1_000_000
# Fields of models that count from 0, or of which there may be none; all other counts begin at 1.
_FROM_ZERO = ("out_blocks", "conv_blocks", "mlp_ratio", "merging")
_NEAR_ONE = 0.999999  # float32 tells 1 from a decay up to here
_LONGEST_TEXT = 4096  # of a path, on Linux
_SHOWN = 200  # characters of a wrong value


class Rule(NamedTuple):
    """What a setting may be.

    Attributes:
        allowed: in words, to follow "it must be".
        accepts: whether a value is allowed; never raises.
    """

    allowed: str
    accepts: Callable[[Any], bool]


def _whole(low: int, high: int = _COUNTER) -> Rule:
    def accepts(value):
        return type(value) is int and low <= value <= high

    return Rule(f"a whole number from {low:,} to {high:,}", accepts)


def _number(low: float, high: float, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number; `above` and `below` exclude the limits themselves."""

    def accepts(value):
        return (
            _is_number(value)
            and (low < value if above else low <= value)
            and (value < high if below else value <= high)
        )

    first = f"above {_plain(low)}" if above else f"from {_plain(low)}"
    last = f"below {_plain(high)}" if below else f"{'at most' if above else 'to'} {_plain(high)}"
    return Rule(f"a number {first} {'and ' if above or below else ''}{last}", accepts)


def _choice(*allowed: Any) -> Rule:
    def accepts(value):
        return any(type(value) is type(one) and value == one for one in allowed)

    return Rule(f"one of {', '.join(map(repr, allowed))}", accepts)


def _optional(rule: Rule) -> Rule:
    return Rule(f"None, or {rule.allowed}", lambda value: value is None or rule.accepts(value))


def _numbers(rule: Rule, hint: str) -> Rule:
    """One number per channel."""

    def accepts(value):
        return _is_sequence(value) and len(value) > 0 and all(map(rule.accepts, value))

    return Rule(f"a tuple with, for each channel, {rule.allowed}{hint}", accepts)


def _several(rule: Rule, low: int) -> Rule:
    """A tuple of `low` values or more."""

    def accepts(value):
        return _is_sequence(value) and len(value) >= low and all(map(rule.accepts, value))

    return Rule(f"a tuple{' of none or more' if not low else ''}, each {rule.allowed}", accepts)


def _interval(low: float, high: float) -> Rule:
    """Two numbers above `low`, in order."""

    def accepts(value):
        return (
            _is_sequence(value)
            and len(value) == 2
            and all(map(_is_number, value))
            and low < value[0] <= value[1] <= high
        )

    return Rule(
        f"two numbers above {low:g} and at most {high:g}, the smaller one first, such as "
        f"({low + (high - low) / 4:g}, {high:g})",
        accepts,
    )


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return True
    return isinstance(value, float) and math.isfinite(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value) <= _LONGEST_TEXT


def _is_pattern(value: Any) -> bool:
    if not _is_text(value):
        return False
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _is_decay_rule(value: Any) -> bool:
    return (
        _is_sequence(value)
        and len(value) == 2
        and _is_pattern(value[0])
        and _FLAG.accepts(value[1])
    )


def _is_plain(value: Any) -> bool:
    """Whether JSON keeps the value as it is, but for tuples."""
    if _is_sequence(value):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool) or _is_text(value) or _is_number(value)


def _are_options(value: Any) -> bool:
    return isinstance(value, ConfigDict) and all(map(_is_plain, value.values()))


_FLAG = Rule("True or False", lambda value: isinstance(value, bool))
_TEXT = Rule(f"text of at most {_LONGEST_TEXT:,} characters", _is_text)
_SHARE = _number(0, 1)
_EVERY_EPOCHS = _number(0, _EPOCHS, above=True)
_EVERY_STEPS = _optional(_whole(1))
_PATTERNS = Rule(
    "a tuple of regular expressions, such as ('/backbone/',)",
    lambda value: _is_sequence(value) and all(map(_is_pattern, value)),
)
_DECAY_RULES = Rule(
    "a tuple of pairs (regular expression, True or False), such as (('/bias$', False),)",
    lambda value: _is_sequence(value) and all(map(_is_decay_rule, value)),
)
_OPTIONS = Rule(
    "fields of the model's family with numbers, text, True, False, None, or tuples of these",
    _are_options,
)
_OF_PIXELS = "; pixel values count from 0 to 1 here, so divide what is given for 0 to 255 by 255"
_PROJECT = Rule(
    r"a name of 1 to 128 characters without / \ # ? % :",
    lambda value: _is_text(value) and re.fullmatch(r"[^/\\#?%:\n]{1,128}", value) is not None,
)


RULES: dict[str, Rule] = {
    "seed": _whole(0, 2**32 - 1),  # the bits that a key of JAX takes
    "task": _TEXT,
    "batch_size": _whole(1),
    "accumulate_steps": _whole(1),
    "on_nan": _choice(*ON_NAN),
    "require_accelerator": _FLAG,
    "model.name": _TEXT,
    "model.drop_path": _optional(_number(0, 1, below=True)),
    "model.dtype": _choice(*DTYPES),
    "model.remat": _FLAG,
    "model.conv_implementation": _choice(*CONV_IMPLEMENTATIONS),
    "model.options": _OPTIONS,
    "model.pretrained": _TEXT,
    "model.reset_head": _FLAG,
    "data.source": _TEXT,
    "data.path": _TEXT,
    "data.image_size": _whole(1, MAX_IMAGE_SIZE),
    "data.max_pixels": _whole(1),
    "data.channels": _choice(1, 3),
    "data.mean": _numbers(_SHARE, _OF_PIXELS),
    "data.std": _numbers(_number(1e-3, 1), _OF_PIXELS),
    "data.validation_fraction": _SHARE,
    "data.crop_fraction": _number(0.1, 1),  # a tenth: ten times the pixels along each side
    "data.crop_mode": _choice(*CROP_MODES),
    "data.interpolation": _choice(*INTERPOLATIONS),
    "data.decoder": _choice(*DECODERS),
    "data.num_threads": _whole(1, 1024),
    "data.num_workers": _whole(0, 1024),
    "data.prefetch_batches": _whole(1, 1024),
    "data.max_corrupt_fraction": _SHARE,
    "augment.crop": _choice(*CROPS),
    "augment.scale": _interval(0, 1),
    "augment.ratio": _interval(0, 1000),
    "augment.shift_pixels": _whole(0, _PIXELS),
    "augment.random_interpolation": _FLAG,
    "augment.flip_probability": _SHARE,
    "augment.rand_augment_layers": _whole(0, 100),
    "augment.rand_augment_magnitude": _number(0, 10),
    "augment.rand_augment_deviation": _number(0, 100),
    "augment.rand_augment_probability": _SHARE,
    "augment.color_jitter": _SHARE,
    "augment.mixup_alpha": _number(0, 1000),
    "augment.cutmix_alpha": _number(0, 1000),
    "augment.mix_probability": _SHARE,
    "augment.cutmix_share": _SHARE,
    "augment.mix_group_size": _whole(0),
    "augment.erase_probability": _SHARE,
    "augment.erase_after_mixing": _FLAG,
    "detection.long_side": _whole(1, MAX_IMAGE_SIZE),
    "detection.multi_scale": _several(_whole(32, MAX_IMAGE_SIZE), 0),
    "detection.crop_probability": _SHARE,
    "detection.max_instances": _whole(1, 1000),
    "detection.sampled_regions": _whole(4, 4096),
    "segmentation.long_side": _whole(1, MAX_IMAGE_SIZE),
    "segmentation.scale": _interval(0, 10),
    "segmentation.max_class_share": _number(0, 1, above=True),
    "segmentation.photometric": _FLAG,
    "segmentation.auxiliary_weight": _number(0, 1000),
    "segmentation.evaluation_mode": _choice(*EVALUATION_MODES),
    "segmentation.slide_stride": _whole(1, MAX_IMAGE_SIZE),
    "segmentation.evaluation_scales": _several(_number(0.1, 10), 1),
    "segmentation.evaluation_flip": _FLAG,
    "loss.label_smoothing": _number(0, 1, below=True),
    "optimizer.learning_rate": _number(0, _RATE),
    "optimizer.learning_rate_batch_size": _whole(0),
    "optimizer.b1": _number(0, _NEAR_ONE),
    "optimizer.b2": _number(0, _NEAR_ONE),
    "optimizer.epsilon": _number(1e-30, 1),
    "optimizer.weight_decay": _number(0, _RATE),
    "optimizer.clip_norm": _number(0, 1e30),
    "optimizer.decay_rules": _DECAY_RULES,
    "optimizer.layer_decay": _number(0, 1, above=True),
    "optimizer.freeze": _PATTERNS,
    "schedule.decay": _choice(*DECAYS),
    "schedule.milestones_epochs": _several(_number(0, _EPOCHS, above=True), 0),
    "schedule.decay_factor": _number(0, 1, above=True),
    "schedule.total_epochs": _number(0, _EPOCHS, above=True),
    "schedule.total_steps": _optional(_whole(1)),
    "schedule.warmup_epochs": _number(0, _EPOCHS),
    "schedule.warmup_steps": _optional(_whole(0)),
    "schedule.cooldown_epochs": _number(0, _EPOCHS),
    "schedule.cooldown_steps": _optional(_whole(0)),
    "schedule.warmup_prefix": _FLAG,
    "schedule.warmup_reaches_peak": _FLAG,
    "schedule.per_epoch": _FLAG,
    "schedule.warmup_learning_rate": _number(0, _RATE),
    "schedule.final_learning_rate": _number(0, _RATE),
    "ema.decay": _number(0, _NEAR_ONE),
    "mesh.fsdp": _whole(1),
    "evaluation.batch_size": _whole(1, MAX_EVALUATION_BATCH),
    "evaluation.every_epochs": _EVERY_EPOCHS,
    "evaluation.every_steps": _EVERY_STEPS,
    "checkpoint.every_epochs": _EVERY_EPOCHS,
    "checkpoint.every_steps": _EVERY_STEPS,
    "checkpoint.keep": _whole(1),
    "log.every_steps": _whole(1),
    "log.tensorboard": _FLAG,
    "log.wandb": _FLAG,
    "log.wandb_project": _PROJECT,
}


def rule_of_field(name: str, kind: Any) -> Rule | None:
    """What a field of a model may be, an option of `create_model`, by its annotated type.

    Returns:
        None for types that only programs give.
    """
    if kind is bool:
        return _FLAG
    if kind is str:
        return _TEXT
    if kind is float:
        return _number(0, _RATE)
    one = _whole(0 if name in _FROM_ZERO else 1, _WIDEST)
    if kind is int:
        return one
    if kind == tuple[int, ...]:
        return Rule(
            f"a tuple of numbers, each {one.allowed}",
            lambda value: (
                _is_sequence(value)
                and (len(value) > 0 or name in _FROM_ZERO)
                and all(map(one.accepts, value))
            ),
        )
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    rule = rule_of_field(name, inner[0]) if len(inner) == 1 else None
    return rule and _optional(rule)


def check_settings(config: Any) -> None:
    """Checks that a config has every setting and no other, each with a value that is allowed.

    Raises:
        ValueError: it does not; names the setting, its value and what is allowed.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"a {type(config).__name__} is no config; begin with default_config(), change values "
            "and return it"
        )
    values = _flat(config)
    missing = [name for name in RULES if name not in values]
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}; begin with default_config(), which has every "
            "setting"
        )
    for name in values.keys() - RULES.keys():
        raise ValueError(no_setting(name))
    for name, rule in RULES.items():
        if not rule.accepts(values[name]):
            raise ValueError(not_allowed(name, shown(values[name])))


def no_setting(name: str) -> str:
    """The sentence about a name that no setting has."""
    close = difflib.get_close_matches(name, RULES, n=1)
    hint = f"did you mean {close[0]}?" if close else "mambaout_jax/config.py lists them all"
    return f"there is no setting {name}; {hint}"


def not_allowed(name: str, value: str) -> str:
    """The sentence about a wrong value, given as text."""
    return refused(name, value, RULES[name])


def refused(name: str, value: str, rule: Rule) -> str:
    """The sentence about a value that a rule refuses, given as text."""
    short = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{name}={short} is not allowed; it must be {rule.allowed}"


def shown(value: Any) -> str:
    """A value as text, whatever it is."""
    try:
        return repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    except Exception:  # a number of thousands of digits, or a class of somebody else
        return f"<{type(value).__name__}>"


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted name; `model.options` is one value."""
    flat = {}
    for key in config:
        name = f"{prefix}{key}"
        if isinstance(config[key], ConfigDict) and name not in RULES:
            flat |= _flat(config[key], f"{name}.")
        else:
            flat[name] = config[key]
    return flat
