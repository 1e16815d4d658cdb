# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, its default and its unit, and the numbers that follow from them.

An experiment file starts from `default_config()`, changes values and returns it from
`get_config()`. Nothing else in the package invents a setting or a default.

A duration is one setting with two spellings, `<name>_epochs` and `<name>_steps`: where
`<name>_steps` is given it replaces the epochs, and `resolve` turns both into updates before
anything is built.
"""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict, config_dict

# A locked `ConfigDict`. Its declared value type is the union of all that a value could be, which no
# type checker can follow.
Config = Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TASKS = ("classification",)
SOURCES = ("digits", "folder", "imagenet")
CROP_MODES = ("center", "squash")
CROPS = ("random_resized", "shift", "none")
INTERPOLATIONS = ("bilinear", "bicubic")
DECODERS = ("pillow", "opencv")
DTYPES = ("float32", "bfloat16")

# fmt: off
_POSITIVE = (
    "batch_size", "accumulate_steps", "data.image_size", "data.num_threads",
    "data.prefetch_batches", "mesh.fsdp", "evaluation.batch_size", "checkpoint.keep",
    "log.every_steps",
)
_NOT_NEGATIVE = (
    "seed", "data.num_workers", "augment.shift_pixels", "augment.mix_group_size",
    "augment.rand_augment_layers", "augment.rand_augment_deviation", "schedule.cooldown_epochs",
    "augment.mixup_alpha", "augment.cutmix_alpha", "optimizer.learning_rate",
    "optimizer.learning_rate_batch_size", "optimizer.weight_decay", "optimizer.clip_norm",
)
_SHARES = (
    "data.validation_fraction", "data.max_corrupt_fraction", "augment.flip_probability",
    "augment.rand_augment_probability", "augment.color_jitter", "augment.mix_probability",
    "augment.cutmix_share", "augment.erase_probability",
    "loss.label_smoothing", "ema.decay",
)
# fmt: on


def default_config() -> Config:
    """All settings with their defaults, as a locked `ConfigDict` (an unknown key is an error)."""
    config = ConfigDict()
    config.seed = 0  # initialisation, data order, augmentation, drop path
    config.task = "classification"
    config.batch_size = 1024  # examples per update, over all devices and micro-batches
    config.accumulate_steps = 1  # micro-batches per update
    config.require_accelerator = False  # True: stop where JAX finds only a CPU

    config.model = ConfigDict()
    config.model.name = "mambaout_tiny"
    # Rate of the last block, earlier blocks linearly less, the first 0; None: the published rate.
    config.model.drop_path = config_dict.placeholder(float)
    config.model.dtype = "float32"  # of the computation; parameters are always float32
    config.model.remat = False  # recompute each block in the backward pass: less memory, more time
    config.model.conv_implementation = "auto"
    config.model.options = ConfigDict()  # any further field of the family's backbone
    config.model.pretrained = ""  # weights to start from, as `weights.load` takes them; "": none
    config.model.reset_head = True  # of these weights: initialise the last layer afresh

    _set_data(config)
    _set_training(config)
    return config.lock()


def _set_data(config: Config) -> None:
    config.data = ConfigDict()
    # "digits": embedded; "folder": images in class sub-folders of `path`; "imagenet": ImageNet-1k,
    # of which `path` holds such folders or what `mambaout prepare` or TensorFlow Datasets wrote.
    config.data.source = "folder"
    config.data.path = ""
    config.data.image_size = 224  # pixels, height and width
    config.data.channels = 3  # 1: greyscale, 3: RGB
    config.data.mean = IMAGENET_MEAN  # per channel, of pixel values in [0, 1]
    config.data.std = IMAGENET_STD
    config.data.validation_fraction = 0.2  # held out of a folder that has no split of its own
    config.data.crop_fraction = 1.0  # evaluation: side of the central crop over the resized side
    config.data.crop_mode = "center"  # evaluation: "center" keeps proportions, "squash" does not
    config.data.interpolation = "bicubic"  # evaluation, and training unless it is drawn
    # Of training images; evaluation is always Pillow's. "opencv": faster, about a grey level off.
    config.data.decoder = "pillow"
    config.data.num_threads = 16  # that decode, in this process
    config.data.num_workers = 0  # processes that decode; 0: threads of this process only
    config.data.prefetch_batches = 4  # batches made ahead
    config.data.max_corrupt_fraction = 0.01  # of the examples read; more of them stop the training

    config.augment = ConfigDict()
    config.augment.crop = "random_resized"  # one of CROPS
    config.augment.scale = (0.08, 1.0)  # random_resized: area of the crop over that of the image
    config.augment.ratio = (3 / 4, 4 / 3)  # random_resized: width over height
    config.augment.shift_pixels = 4  # shift: largest translation along each axis, zeros come in
    config.augment.random_interpolation = False  # draw bilinear or bicubic for each crop
    config.augment.flip_probability = 0.5  # horizontal
    config.augment.rand_augment_layers = 0  # operations drawn per image, with replacement; 0: off
    config.augment.rand_augment_magnitude = 9.0  # 0 to 10, the mean of each operation's
    config.augment.rand_augment_deviation = 0.5  # of the magnitude, normal
    config.augment.rand_augment_probability = 0.5  # that a drawn operation is applied
    config.augment.color_jitter = 0.0  # largest change of brightness, contrast, saturation; 0: off
    config.augment.mixup_alpha = 0.0  # of Beta(alpha, alpha); 0: off
    config.augment.cutmix_alpha = 0.0  # likewise
    config.augment.mix_probability = 1.0  # that a group of examples is mixed at all
    config.augment.cutmix_share = 0.5  # of the mixed groups, where mixup and cutmix are both on
    config.augment.mix_group_size = 0  # examples that share one mixing weight; 0: a micro-batch
    config.augment.erase_probability = 0.0  # random erasing with normal noise
    config.augment.erase_after_mixing = True  # False: noise is mixed, too


def _set_training(config: Config) -> None:
    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3  # peak
    config.optimizer.learning_rate_batch_size = 0  # > 0: the rate is for this batch, scaled
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.0  # global norm of the gradient; 0: off
    # (regular expression, decays?): the first that is found in a parameter's path decides; those
    # of the model's family follow. A parameter that none covers is an error.
    config.optimizer.decay_rules = ()
    # The rate of each layer over that of the next one towards the head; 1: the same for all.
    config.optimizer.layer_decay = 1.0
    config.optimizer.freeze = ()  # regular expressions: parameters found by one are not trained

    config.schedule = ConfigDict()  # linear warm-up, then a half cosine
    config.schedule.total_epochs = 300.0  # until the cosine ends
    config.schedule.total_steps = config_dict.placeholder(int)
    config.schedule.warmup_epochs = 20.0  # counted inside the total
    config.schedule.warmup_steps = config_dict.placeholder(int)
    config.schedule.cooldown_epochs = 0.0  # at the final rate, on top of the total
    config.schedule.cooldown_steps = config_dict.placeholder(int)
    # The cosine begins where the warm-up ends; False: at update 0, its start hidden by the warm-up.
    config.schedule.warmup_prefix = True
    config.schedule.per_epoch = False  # hold the rate that an epoch's first update has
    config.schedule.warmup_learning_rate = 1e-6  # at update 0, not scaled
    config.schedule.final_learning_rate = 1e-5  # where the cosine ends, not scaled

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # per update, of parameters and batch statistics; 0: no average is kept

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices over which one copy of the training state is spread

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 256  # examples, over all devices
    config.evaluation.every_epochs = 1.0
    config.evaluation.every_steps = config_dict.placeholder(int)

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1.0
    config.checkpoint.every_steps = config_dict.placeholder(int)
    config.checkpoint.keep = 2  # newest checkpoints

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.tensorboard = False
    config.log.wandb = False  # Weights & Biases, by the package's own environment variables
    config.log.wandb_project = "mambaout_jax"


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What `resolve` makes of a config: durations in updates, rates per update.

    Attributes:
        steps_per_epoch: updates that see as many examples as the training set has, rounded down.
        total_steps: of the run, with its cool-down.
        warmup_steps, cooldown_steps: the first and the last of them.
        evaluate_every, checkpoint_every, log_every: updates between two.
        micro_batch_size: examples of one forward and backward pass, over all devices.
        learning_rate: peak, after scaling by the batch size.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    cooldown_steps: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    micro_batch_size: int
    learning_rate: float


def resolve(config: Config, num_examples: int) -> Resolved:
    """Turns durations into updates and scales the learning rate.

    Args:
        config: a valid config (`validate`).
        num_examples: size of the training set.

    Raises:
        ValueError: the batch is larger than the training set, or the warm-up longer than the run.
    """
    if config.batch_size > num_examples:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the training set ({num_examples} "
            f"examples); set --config.batch_size to {num_examples} or less"
        )
    steps_per_epoch = num_examples // config.batch_size
    total = _steps(config.schedule, "total", steps_per_epoch)
    warmup = _steps(config.schedule, "warmup", steps_per_epoch)
    cooldown = _steps(config.schedule, "cooldown", steps_per_epoch)
    if total < 1 or warmup > total:
        raise ValueError(
            f"the schedule has {total} updates of which {warmup} warm up; it needs at least one "
            "update and no more warm-up than updates: set --config.schedule.total_epochs or "
            "--config.schedule.warmup_epochs (or their _steps)"
        )
    reference = config.optimizer.learning_rate_batch_size
    scale = config.batch_size / reference if reference else 1.0
    return Resolved(
        steps_per_epoch=steps_per_epoch,
        total_steps=total + cooldown,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        evaluate_every=max(1, _steps(config.evaluation, "every", steps_per_epoch)),
        checkpoint_every=max(1, _steps(config.checkpoint, "every", steps_per_epoch)),
        log_every=config.log.every_steps,
        micro_batch_size=config.batch_size // config.accumulate_steps,
        learning_rate=config.optimizer.learning_rate * scale,
    )


def _steps(section: Config, name: str, steps_per_epoch: int) -> int:
    steps = section[f"{name}_steps"]
    return int(steps) if steps is not None else round(section[f"{name}_epochs"] * steps_per_epoch)


def validate(config: Config, device_count: int) -> None:
    """Checks what no single value can show, before anything is built.

    Args:
        config: made by `default_config`.
        device_count: devices of all processes.

    Raises:
        ValueError: names the setting, its value, what is allowed and what to set instead.
    """
    _one_of(config, "task", TASKS)
    _one_of(config, "model.dtype", DTYPES)
    _one_of(config, "data.source", SOURCES)
    _one_of(config, "data.channels", (1, 3))
    _one_of(config, "data.crop_mode", CROP_MODES)
    _one_of(config, "data.interpolation", INTERPOLATIONS)
    _one_of(config, "data.decoder", DECODERS)
    _one_of(config, "augment.crop", CROPS)
    for name in _POSITIVE:
        _within(config, name, 1, math.inf)
    for name in _NOT_NEGATIVE:
        _within(config, name, 0, math.inf)
    for name in _SHARES:
        _within(config, name, 0, 1)
    _within(config, "augment.rand_augment_magnitude", 0, 10)
    for name in ("scale", "ratio"):
        pair = config.augment[name]
        if (
            len(pair) != 2
            or not all(isinstance(x, int | float) for x in pair)
            or not (0 < pair[0] <= pair[1])
        ):
            raise ValueError(
                f"augment.{name}={pair!r} must be two numbers above 0, the smaller one first"
            )
    for name in ("data.crop_fraction", "optimizer.layer_decay"):
        if not 0 < _value(config, name) <= 1:
            raise ValueError(
                f"{name}={_value(config, name)} is out of range; it must be above 0 and at most 1"
            )
    if config.model.drop_path is not None:
        _within(config, "model.drop_path", 0, 1)
    for name in ("mean", "std"):
        value = config.data[name]
        if len(value) != config.data.channels:
            raise ValueError(
                f"data.{name}={value} has {len(value)} values for data.channels="
                f"{config.data.channels}; give one value per channel"
            )
    if config.data.source in ("folder", "imagenet") and not config.data.path:
        raise ValueError(
            f"data.source={config.data.source!r} needs the folder: set --config.data.path=DIR, "
            "where DIR holds train/ and val/ with one sub-folder of images per class, for 'folder' "
            "also such sub-folders alone, for 'imagenet' also what `mambaout prepare` wrote"
        )
    _validate_batch(config, device_count)


def _validate_batch(config: Config, device_count: int) -> None:
    if device_count % config.mesh.fsdp:
        raise ValueError(
            f"mesh.fsdp={config.mesh.fsdp} does not divide the {device_count} devices; allowed are "
            f"{[n for n in range(1, device_count + 1) if device_count % n == 0]}"
        )
    unit = device_count * config.accumulate_steps
    if config.batch_size % unit:
        down, up = config.batch_size // unit * unit, -(-config.batch_size // unit) * unit
        raise ValueError(
            f"batch_size={config.batch_size} does not divide into {device_count} devices x "
            f"{config.accumulate_steps} micro-batches; set --config.batch_size to "
            f"{f'{down} or ' if down else ''}{up}"
        )
    micro, group = config.batch_size // config.accumulate_steps, config.augment.mix_group_size
    if group and micro % group:
        raise ValueError(
            f"augment.mix_group_size={group} does not divide the micro-batch of {micro} examples; "
            "0 makes the whole micro-batch one group"
        )
    if config.evaluation.batch_size % device_count:
        up = -(-config.evaluation.batch_size // device_count) * device_count
        raise ValueError(
            f"evaluation.batch_size={config.evaluation.batch_size} does not divide into "
            f"{device_count} devices; set --config.evaluation.batch_size={up}"
        )


def _value(config: Config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


def _one_of(config: Config, name: str, allowed: tuple) -> None:
    value = _value(config, name)
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}={value!r} is not known; allowed are {words}")


def _within(config: Config, name: str, low: float, high: float) -> None:
    value = _value(config, name)
    if not low <= value <= high:
        limit = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name}={value} is out of range; it must be {limit}")
