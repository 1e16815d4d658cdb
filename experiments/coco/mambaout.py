# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with MambaOut on COCO, as in Table 2 of the paper (arXiv 2405.07992, Section 4.3).

    mambaout train --config experiments/coco/mambaout.py --config.data.path=DIR
    mambaout train --config experiments/coco/mambaout.py:mambaout_base --config.data.path=DIR
    mambaout train --config experiments/coco/mambaout.py:mambaout_tiny,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The words after the colon are the backbone
(mambaout_tiny, the default, _small or _base) and the schedule: 1x, 12 epochs at 800 pixels, the
default and the paper's, or 3x, 36 epochs at many scales. The backbone starts from its published
ImageNet weights; --config.model.pretrained names others, "" none.

The paper gives the schedule, sizes, AdamW, the rate 1e-4, 16 images an update and half precision
on four RTX 4090. What it does not give is that of mmdet 3.3.0's
configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py, which VMamba's files inherit too: weight decay
0.05 of all that has no "norm" in its name, a warm-up of 1,000 updates from a thousandth of the
rate, a tenth of it after epochs 8 and 11, no clipping, no average. The 3x schedule is that of
mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py there. Drop path and the LayerNorm on every stage's
map are not published for COCO; they are what the authors used on ADE20K, by their answer in
github.com/yuweihao/MambaOut/issues/251: 0.3, 0.3 or 0.4, 0.6. For small 0.4 is taken, the rate of
its pre-training.

What differs: this computes in bfloat16, mmdet in float16 with a scaled loss. An epoch is 7,329
updates here and 7,330 there, where the last batch of each orientation is filled up.

Box AP and mask AP as published: tiny 45.1, 41.0, small 47.4, 42.7, base 47.4, 43.0.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

from collections.abc import Mapping

from mambaout_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mambaout_jax.weights.catalog import weights_of

# Drop-path rate of the last block; it rises linearly from 0 in the first block.
DROP_PATH = {"mambaout_tiny": 0.3, "mambaout_small": 0.4, "mambaout_base": 0.6}
# (epochs, epochs after which the rate falls to a tenth)
SCHEDULES = {"1x": (12.0, (8.0, 11.0)), "3x": (36.0, (27.0, 33.0))}
# mmengine exempts a parameter whose name has "norm" in it, and tables of relative positions; all
# others decay, biases and depthwise kernels too.
DECAY_RULES = (
    (r"^/(backbone|neck)/.*norm", False),
    (r"/(relative_position_bias\w*|pos_embed)$", False),
    (r"", True),
)


def get_config(argument: str = "mambaout_tiny"):
    return coco_recipe(argument, DROP_PATH)


def coco_recipe(argument: str, drop_path: Mapping[str, float | None]):
    """The paper's recipe; recipes beside this file begin with it.

    Args:
        argument: the backbone, and after a comma the schedule.
        drop_path: the recipe's backbones and their rates; None: the one of their pre-training.

    Raises:
        ValueError: the argument names another backbone or another schedule.
    """
    model, _, schedule = argument.partition(",")
    schedule = schedule or "1x"
    if model not in drop_path or schedule not in SCHEDULES:
        raise ValueError(
            f"{argument!r} is not a model and schedule of this recipe; models are "
            f"{', '.join(drop_path)}, schedules {', '.join(SCHEDULES)}: {next(iter(drop_path))},1x"
        )
    config = default_config()
    config.task = "detection"
    config.batch_size = 16
    config.model.name = model
    config.model.drop_path = drop_path[model]
    config.model.dtype = "bfloat16"
    config.model.pretrained = next(iter(weights_of(model)), "")
    set_data(config, schedule)
    set_optimisation(config, schedule)
    return config


def set_data(config, schedule):
    config.data.source = "coco"
    config.data.image_size = 800
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.detection.long_side = 1333
    config.augment.flip_probability = 0.5
    if schedule == "3x":
        config.detection.multi_scale = tuple(range(480, 801, 32))
        config.detection.crop_probability = 0.5
    config.evaluation.batch_size = 16


def set_optimisation(config, schedule):
    config.optimizer.learning_rate = 1e-4
    config.optimizer.learning_rate_batch_size = 16
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.0
    config.optimizer.decay_rules = DECAY_RULES
    config.ema.decay = 0.0

    config.schedule.decay = "steps"
    config.schedule.total_epochs, config.schedule.milestones_epochs = SCHEDULES[schedule]
    config.schedule.decay_factor = 0.1
    config.schedule.warmup_steps = 1000
    config.schedule.warmup_reaches_peak = True  # mmengine's ramp is full at update 999
    config.schedule.warmup_learning_rate = 1e-7
