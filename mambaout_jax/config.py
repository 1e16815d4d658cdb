# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, its default and its unit, and the numbers that follow from them.

An experiment file starts from `default_config()`, changes values and returns the config from
`get_config()`. No other file of the package adds a setting or a default; what each may be is in
`settings.RULES`.

A duration has two spellings, `<name>_epochs` and `<name>_steps`: `<name>_steps` replaces the epochs
if it is set, and `resolve` turns both into updates before anything is built.
"""

import dataclasses
import itertools
from typing import Any

from ml_collections import ConfigDict, config_dict

from mambaout_jax.settings import MAX_PIXELS, RULES, check_settings, not_allowed

# A locked `ConfigDict`. Its declared value type is a union of all types that a value could have,
# which no type checker can follow.
Config = Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_UPDATES = 2**31 - 1  # they are counted in 32 bits


def default_config() -> Config:
    """All settings with their defaults, as a locked `ConfigDict` (an unknown key is an error)."""
    config = ConfigDict()
    config.seed = 0  # initialisation, data order, augmentation, drop path
    config.task = "classification"  # a key of `tasks.TASKS`: "detection", "segmentation"
    config.batch_size = 1024  # examples per update, over all devices and micro-batches
    config.accumulate_steps = 1  # micro-batches per update
    # When the loss or its gradient is NaN or infinite: "stop", or "roll back": go on from the last
    # checkpoint without the batches that led there, up to `rollback.MOST_ROLLBACKS` times.
    config.on_nan = "stop"
    config.require_accelerator = False  # True: stop where JAX finds only a CPU

    config.model = ConfigDict()
    config.model.name = "mambaout_tiny"
    # Rate of the last block; the rate rises linearly from 0 in the first. None: the published rate.
    config.model.drop_path = config_dict.placeholder(float)
    config.model.dtype = "float32"  # precision of the computation; parameters are always float32
    config.model.remat = False  # recompute each block in the backward pass: less memory, more time
    config.model.conv_implementation = "auto"
    config.model.options = ConfigDict()  # further fields of the family's backbone
    config.model.pretrained = ""  # weights to start from, as for `weights.load`; "": none
    config.model.reset_head = True  # initialise the last layer instead of taking it from them

    _set_data(config)
    _set_dense(config)
    _set_training(config)
    return config.lock()


def _set_data(config: Config) -> None:
    config.data = ConfigDict()
    # "digits": those of scikit-learn; "folder": images in class sub-folders of `path`; "imagenet":
    # ImageNet-1k in such folders, or as `mambaout prepare` or TensorFlow Datasets write it; "coco",
    # "ade20k": as `mambaout prepare` writes them; "scenes": digits on photographs, embedded.
    config.data.source = "folder"
    config.data.path = ""
    # Pixels, height and width; detection: the shorter side; segmentation: of the training crop, and
    # the shorter side in evaluation.
    config.data.image_size = 224
    config.data.channels = 3  # 1: greyscale, 3: RGB
    config.data.mean = IMAGENET_MEAN  # per channel, of pixel values in [0, 1]
    config.data.std = IMAGENET_STD
    config.data.validation_fraction = 0.2  # held out, if a folder has no splits of its own
    config.data.crop_fraction = 1.0  # evaluation: side of the central crop over the resized side
    config.data.crop_mode = "center"  # evaluation: "center" keeps proportions, "squash" does not
    config.data.interpolation = "bicubic"  # evaluation; training too, unless it is drawn at random
    # For training images; evaluation always uses Pillow. "opencv": faster, about a grey level off.
    config.data.decoder = "pillow"
    config.data.num_threads = 16  # threads that decode, in this process
    config.data.num_workers = 0  # processes that decode; 0: only the threads of this process
    config.data.prefetch_batches = 4  # batches prepared ahead
    config.data.max_pixels = MAX_PIXELS  # height times width of the largest image file to be read
    config.data.max_corrupt_fraction = 0.01  # of the examples read; more than that stop the run

    config.augment = ConfigDict()  # of classification, but for flip_probability
    config.augment.crop = "random_resized"  # one of `settings.CROPS`
    config.augment.scale = (0.08, 1.0)  # random_resized: area of the crop over that of the image
    config.augment.ratio = (3 / 4, 4 / 3)  # random_resized: width over height
    config.augment.shift_pixels = 4  # shift: largest translation along each axis, filled with zeros
    config.augment.random_interpolation = False  # draw bilinear or bicubic for each crop
    config.augment.flip_probability = 0.5  # horizontal
    config.augment.rand_augment_layers = 0  # operations drawn per image, with replacement; 0: off
    config.augment.rand_augment_magnitude = 9.0  # mean magnitude of the operations, 0 to 10
    config.augment.rand_augment_deviation = 0.5  # standard deviation of the magnitude
    config.augment.rand_augment_probability = 0.5  # probability that a drawn operation is applied
    config.augment.color_jitter = 0.0  # largest change of brightness, contrast, saturation; 0: off
    config.augment.mixup_alpha = 0.0  # mixing weights are drawn from Beta(alpha, alpha); 0: off
    config.augment.cutmix_alpha = 0.0  # likewise
    config.augment.mix_probability = 1.0  # probability that a group of examples is mixed at all
    config.augment.cutmix_share = 0.5  # share of cutmix among mixed groups, if mixup is on too
    config.augment.mix_group_size = 0  # examples that share one mixing weight; 0: a micro-batch
    config.augment.erase_probability = 0.0  # random erasing with normal noise
    config.augment.erase_after_mixing = True  # False: the noise is mixed too


def _set_dense(config: Config) -> None:
    config.detection = ConfigDict()
    config.detection.long_side = 1333  # pixels, at most; the shorter side is data.image_size
    # Training: shorter sides in pixels, one drawn for each image; (): data.image_size alone.
    config.detection.multi_scale = ()
    config.detection.crop_probability = 0.0  # training: of a crop, 384 to 600 pixels, before that
    config.detection.max_instances = 100  # objects of a training image; further ones are left out
    config.detection.sampled_regions = 512  # training: of an image, for the heads to learn from

    config.segmentation = ConfigDict()
    config.segmentation.long_side = 2048  # pixels, at most; the shorter side is data.image_size
    config.segmentation.scale = (0.5, 2.0)  # training: factor of both sides, drawn for each image
    config.segmentation.max_class_share = (
        0.75  # of one class in a training crop, as ten tries allow
    )
    config.segmentation.photometric = True  # training: brightness, contrast, saturation, hue
    config.segmentation.auxiliary_weight = 0.4  # of the auxiliary head's loss; the main one has 1
    config.segmentation.evaluation_mode = "whole"  # or "slide": crops of data.image_size, averaged
    config.segmentation.slide_stride = 341  # pixels from one crop to the next
    config.segmentation.evaluation_scales = (1.0,)  # factors of both sides; results are averaged
    config.segmentation.evaluation_flip = False  # average with the mirrored image's


def _set_training(config: Config) -> None:
    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # of classification

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3  # peak
    config.optimizer.learning_rate_batch_size = 0  # batch that the rate is for; 0: do not scale it
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.0  # global norm of the gradient; 0: off
    # (regular expression, decays?): the first one found in a parameter's path decides; the rules of
    # the model's family come after these. A parameter that matches none is an error.
    config.optimizer.decay_rules = ()
    # Learning rate of each layer over that of the next one towards the head; 1: the same for all.
    config.optimizer.layer_decay = 1.0
    config.optimizer.freeze = ()  # regular expressions; parameters that match one are not trained

    config.schedule = ConfigDict()  # linear warm-up, then a decay
    config.schedule.decay = "cosine"  # or "linear", or "steps": times decay_factor at milestones
    config.schedule.milestones_epochs = ()  # steps: in order, counted from the run's beginning
    config.schedule.decay_factor = 0.1  # steps
    config.schedule.total_epochs = 300.0  # until the decay ends
    config.schedule.total_steps = config_dict.placeholder(int)
    config.schedule.warmup_epochs = 20.0  # counted inside the total
    config.schedule.warmup_steps = config_dict.placeholder(int)
    config.schedule.cooldown_epochs = 0.0  # at the final rate, on top of the total
    config.schedule.cooldown_steps = config_dict.placeholder(int)
    # True: the decay begins where the warm-up ends; False: at update 0, hidden by the warm-up.
    config.schedule.warmup_prefix = True
    # True: the warm-up's last update has the peak rate; False: the first one after it has.
    config.schedule.warmup_reaches_peak = False
    config.schedule.per_epoch = False  # keep the rate of an epoch's first update for all of it
    config.schedule.warmup_learning_rate = 1e-6  # at update 0, not scaled
    config.schedule.final_learning_rate = 1e-5  # cosine, linear: at the decay's end, not scaled

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
    config.checkpoint.keep = 2  # how many of the newest checkpoints

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.tensorboard = False
    config.log.wandb = False  # Weights & Biases, set up by its own environment variables
    config.log.wandb_project = "mambaout_jax"


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The numbers that follow from a config: durations in updates, the scaled learning rate.

    Attributes:
        steps_per_epoch: updates that see as many examples as the training set has, rounded down.
        total_steps: updates of the whole run, including the cool-down.
        warmup_steps, cooldown_steps: updates of the warm-up and the cool-down.
        milestones: first updates at a lower rate, of a decay by steps.
        evaluate_every, checkpoint_every, log_every: updates from one to the next.
        micro_batch_size: examples of one forward and backward pass, over all devices.
        learning_rate: peak rate, after scaling by the batch size.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    cooldown_steps: int
    milestones: tuple[int, ...]
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
        ValueError: the batch is larger than the training set, the warm-up is longer than the run,
            milestones are not in order within it, or the run has more updates than 32 bits can
            count.
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
            f"the schedule has {total:,} updates of which {warmup:,} warm up; it needs at least "
            "one update and no more warm-up than updates: change "
            f"{_duration(config.schedule, 'total')} or {_duration(config.schedule, 'warmup')}"
        )
    if total + cooldown > _MOST_UPDATES:
        raise ValueError(
            f"the schedule has {total + cooldown:,} updates; it may have {_MOST_UPDATES:,}: lower "
            f"{_duration(config.schedule, 'total')} or {_duration(config.schedule, 'cooldown')}"
        )
    reference = config.optimizer.learning_rate_batch_size
    scale = config.batch_size / reference if reference else 1.0
    return Resolved(
        steps_per_epoch=steps_per_epoch,
        total_steps=total + cooldown,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        milestones=_milestones(config.schedule, steps_per_epoch, total),
        evaluate_every=max(1, _steps(config.evaluation, "every", steps_per_epoch)),
        checkpoint_every=max(1, _steps(config.checkpoint, "every", steps_per_epoch)),
        log_every=config.log.every_steps,
        micro_batch_size=config.batch_size // config.accumulate_steps,
        learning_rate=config.optimizer.learning_rate * scale,
    )


def _milestones(schedule: Config, steps_per_epoch: int, total: int) -> tuple[int, ...]:
    """Updates at which the rate falls."""
    milestones = tuple(round(epochs * steps_per_epoch) for epochs in schedule.milestones_epochs)
    if any(after <= before for before, after in itertools.pairwise((0, *milestones, total))):
        raise ValueError(
            f"schedule.milestones_epochs={schedule.milestones_epochs} are the updates {milestones} "
            f"of {total:,}; they must rise, from above 0 to below the end: change them or "
            f"{_duration(schedule, 'total')}"
        )
    return milestones


def _steps(section: Config, name: str, steps_per_epoch: int) -> int:
    steps = section[f"{name}_steps"]
    return int(steps) if steps is not None else round(section[f"{name}_epochs"] * steps_per_epoch)


def _duration(schedule: Config, name: str) -> str:
    """The setting that decides a duration, with its value."""
    key = f"{name}_epochs" if schedule[f"{name}_steps"] is None else f"{name}_steps"
    return f"schedule.{key}={schedule[key]}"


def validate(config: Config, device_count: int) -> None:
    """Checks values and how they fit together, before anything is built.

    Args:
        config: a config that began as `default_config()`.
        device_count: devices of all processes together.

    Raises:
        ValueError: a setting is wrong; the message has its value, what is allowed and what to set
            instead.
    """
    check_settings(config)
    for name in ("mean", "std"):
        value = config.data[name]
        if len(value) != config.data.channels:
            raise ValueError(
                f"data.{name}={value} has {len(value)} values for data.channels="
                f"{config.data.channels}; give one value per channel"
            )
    if config.augment.crop == "shift" and config.augment.shift_pixels >= config.data.image_size:
        raise ValueError(
            f"augment.shift_pixels={config.augment.shift_pixels} can move the whole image of "
            f"data.image_size={config.data.image_size} out of sight; it must be below that"
        )
    _validate_task(config)
    _validate_batch(config, device_count)
    validate_evaluation_batch(config, device_count)


def _validate_task(config: Config) -> None:
    """What one task or one decay reads is changed for no other."""
    dense = ("detection", "segmentation")
    changed = [text for task in dense if task != config.task for text in _changed_in(config, task)]
    if config.task in dense:
        changed += _changed_in(config, "augment", besides=("flip_probability",))
        changed += _changed_in(config, "loss")
    if changed:
        raise ValueError(
            f"{', '.join(changed)} {'does' if len(changed) == 1 else 'do'} nothing with task="
            f"{config.task!r}; leave the default, or set --config.task to what reads it"
        )
    if bool(config.schedule.milestones_epochs) != (config.schedule.decay == "steps"):
        raise ValueError(
            f"schedule.milestones_epochs={config.schedule.milestones_epochs} does not go with "
            f"schedule.decay={config.schedule.decay!r}; 'steps', and no other, needs milestones"
        )
    if config.task == "detection":
        short = max((config.data.image_size, *config.detection.multi_scale))
        _validate_long_side("detection", short, config.detection.long_side)
    if config.task == "segmentation":
        stride, size = config.segmentation.slide_stride, config.data.image_size
        _validate_long_side("segmentation", size, config.segmentation.long_side)
        if config.segmentation.evaluation_mode == "slide" and stride > size:
            raise ValueError(
                f"segmentation.slide_stride={stride} leaves gaps between crops of data.image_size="
                f"{size}; set it to that or less"
            )


def _validate_long_side(section: str, short: int, long: int) -> None:
    if long < short:
        raise ValueError(
            f"{section}.long_side={long} is below the shorter side of {short} pixels; raise it, or "
            f"lower data.image_size{' and multi_scale' if section == 'detection' else ''}"
        )


def _changed_in(config: Config, section: str, besides: tuple[str, ...] = ()) -> list[str]:
    """Settings of a section that do not have their defaults, as text with their values."""
    defaults = default_config()[section]
    return [
        f"{section}.{key}={config[section][key]!r}"
        for key in defaults
        if key not in besides and config[section][key] != defaults[key]
    ]


def _validate_batch(config: Config, device_count: int) -> None:
    if device_count % config.mesh.fsdp:
        raise ValueError(
            f"mesh.fsdp={config.mesh.fsdp} does not divide the {device_count} devices; allowed are "
            f"{[n for n in range(1, device_count + 1) if device_count % n == 0]}"
        )
    unit = device_count * config.accumulate_steps
    if config.batch_size % unit:
        down = config.batch_size // unit * unit
        up = down + unit
        raise ValueError(
            f"batch_size={config.batch_size} does not divide into {device_count} devices x "
            f"{config.accumulate_steps} micro-batches (accumulate_steps); set --config.batch_size "
            f"to {f'{down} or ' if down else ''}{up}"
        )
    micro = config.batch_size // config.accumulate_steps
    group = config.augment.mix_group_size
    if group and micro % group:
        raise ValueError(
            f"augment.mix_group_size={group} does not divide the micro-batch of {micro} examples; "
            "0 makes the whole micro-batch one group"
        )


def validate_evaluation_batch(config: Config, device_count: int) -> None:
    """Checks that an evaluation batch divides among the devices.

    Raises:
        ValueError: it does not, or is out of range; names what to set instead.
    """
    size = config.evaluation.batch_size
    if not RULES["evaluation.batch_size"].accepts(size):
        raise ValueError(not_allowed("evaluation.batch_size", repr(size)))
    if config.evaluation.batch_size % device_count:
        up = -(-config.evaluation.batch_size // device_count) * device_count
        raise ValueError(
            f"evaluation.batch_size={config.evaluation.batch_size} does not divide into "
            f"{device_count} devices; set --config.evaluation.batch_size={up}"
        )
