# SPDX-License-Identifier: Apache-2.0
"""MambaOut on ImageNet-1k, as its authors trained it (arXiv 2405.07992, table 5, and its code).

    mambaout train --config experiments/imagenet/mambaout.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/mambaout.py:mambaout_base,pod ...
    mambaout train --config experiments/imagenet/mambaout.py:mambaout_kobe,1gpu ...

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The words after
the colon are the model (mambaout_femto, _kobe, _tiny, _small or _base; default _tiny) and the
machine:

    8gpu    8 GPUs, float32, 4 micro-batches per update, as in the published script; the default
    4gpu    4 GPUs, 8 micro-batches
    2gpu    2 GPUs, 16 micro-batches
    1gpu    1 GPU, 32 micro-batches
    pod     32 TPU chips or fewer, bfloat16, the whole batch at once, stages compiled as loops

On all of them an update sees 4096 images at the same rate, and the same groups of 128 images share
one mixing weight; tests/data/test_recipe.py shows that the updates are equal up to rounding. What
differs is which examples drop path drops, and the precision. A GPU holds 128 images at a time; if
these are too many, --config.model.remat trades time for memory. GPUs too are faster with
--config.model.dtype=bfloat16, an option that is off in the published script. If the processor
cannot keep up, --config.data.decoder=opencv and --config.data.num_workers help.

Top-1 accuracy as published, at 224 pixels: femto 78.9, kobe 80.0, tiny 82.7, small 84.1, base 84.2.

Hardware: as above; the authors trained on TPU v3.
Result: not run here.
"""

from mambaout_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config

# Drop-path rate of the last block; it rises linearly from 0 in the first block.
DROP_PATH = {
    "mambaout_femto": 0.025,
    "mambaout_kobe": 0.025,
    "mambaout_tiny": 0.2,
    "mambaout_small": 0.4,
    "mambaout_base": 0.6,
}
# (micro-batches per update, dtype of the computation, whether the blocks of a stage are compiled as
# one that loops: TPUs' compiler takes minutes for a program)
MACHINES = {
    "8gpu": (4, "float32", False),
    "4gpu": (8, "float32", False),
    "2gpu": (16, "float32", False),
    "1gpu": (32, "float32", False),
    "pod": (1, "bfloat16", True),
}


def get_config(argument: str = "mambaout_tiny"):
    model, _, machine = argument.partition(",")
    machine = machine or "8gpu"
    if model not in DROP_PATH or machine not in MACHINES:
        raise ValueError(
            f"{argument!r} is not a model and machine of this recipe; models are "
            f"{', '.join(DROP_PATH)}, machines {', '.join(MACHINES)}: mambaout_tiny,8gpu"
        )
    config = default_config()
    config.batch_size = 4096
    config.accumulate_steps, config.model.dtype, loop = MACHINES[machine]
    with config.model.options.unlocked():
        config.model.options.loop_blocks = loop
    config.model.name = model
    config.model.drop_path = DROP_PATH[model]
    set_data(config)
    set_augmentation(config)
    set_optimisation(config)
    return config


def set_data(config):
    config.data.source = "imagenet"
    config.data.image_size = 224
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    # Evaluation sees the whole shorter side; timm's default would be a crop of 0.875.
    config.data.crop_fraction = 1.0
    config.data.interpolation = "bicubic"
    config.evaluation.batch_size = 512


def set_augmentation(config):
    augment = config.augment
    augment.crop = "random_resized"
    augment.scale = (0.08, 1.0)
    augment.ratio = (3 / 4, 4 / 3)
    augment.flip_probability = 0.5
    # Bilinear or bicubic, drawn for each crop and each operation of RandAugment.
    augment.random_interpolation = True
    # RandAugment "rand-m9-mstd0.5-inc1": magnitude 9 with deviation 0.5, operations that grow with
    # it. The name does not say that there are two, each applied with probability 0.5.
    augment.rand_augment_layers = 2
    augment.rand_augment_magnitude = 9.0
    augment.rand_augment_deviation = 0.5
    augment.rand_augment_probability = 0.5
    # The paper's table lists 0.4, but timm switches it off if RandAugment is on.
    augment.color_jitter = 0.0
    # Each epoch sees each image once: no repeated augmentation.

    augment.mixup_alpha = 0.8
    augment.cutmix_alpha = 1.0
    augment.mix_probability = 1.0
    augment.cutmix_share = 0.5
    # timm draws one weight for what one process loads at a time: 4096 / 8 GPUs / 4 micro-batches.
    # The group size of the authors' own run, on TPUs, is unknown.
    augment.mix_group_size = 128
    # timm's loader mixes while it collates, so that it erases in normalised and mixed images.
    augment.erase_probability = 0.25
    augment.erase_after_mixing = True
    config.loss.label_smoothing = 0.1  # applied to the targets before they are mixed


def set_optimisation(config):
    config.optimizer.learning_rate = 4e-3  # 1e-3 per 1024 images
    config.optimizer.learning_rate_batch_size = 4096
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05  # of depthwise kernels too, not of biases and norms
    config.optimizer.clip_norm = 0.0
    config.ema.decay = 0.0

    # 312 updates per epoch: 1,281,167 images are 312 batches and a remainder. timm drops it; here
    # it begins the next epoch.
    config.schedule.total_epochs = 300.0
    config.schedule.cooldown_epochs = 10.0  # timm's default, which the authors did not change
    config.schedule.warmup_epochs = 20.0
    # The cosine runs from the start and the warm-up hides its first 20 epochs: at epoch 20 the rate
    # jumps from 3.8e-3 to 3.96e-3, and it never reaches 4e-3.
    config.schedule.warmup_prefix = False
    config.schedule.per_epoch = True  # 310 rates, not 96,720
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.final_learning_rate = 1e-5
