# SPDX-License-Identifier: Apache-2.0
"""UperNet with MambaOut on ADE20K, as in Table 3 of the paper (arXiv 2405.07992, Section 4.4).

    mambaout train --config experiments/ade20k/mambaout.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/mambaout.py:mambaout_base --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: mambaout_tiny (the default), mambaout_small or mambaout_base. It starts from
its published ImageNet weights; --config.model.pretrained names others, "" none.

The paper gives 160,000 updates of 16 crops of 512 pixels, AdamW, the rate 1e-4 and half precision.
The authors' answer in github.com/yuweihao/MambaOut/issues/251 adds: all else as in mmseg's file for
Swin, a LayerNorm on every stage's map, drop path 0.3, 0.3 or 0.4, and 0.6, no decay of rates by
layer. That file, mmseg 1.2.2's
configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py, has weight decay
0.01 of all that has no "norm" in its name, a warm-up of 1,500 updates, then a straight line to 0,
and evaluation of whole images. For small 0.4 is taken, the rate of its pre-training.

The column "MS" averages six scales and their mirror images:

    --config.segmentation.evaluation_scales='(0.5,0.75,1.0,1.25,1.5,1.75)'
    --config.segmentation.evaluation_flip=True

What differs: this computes in bfloat16, mmseg in float16 with a scaled loss.

mIoU as published, at one scale and at many: tiny 47.4, 48.6, small 49.5, 50.6, base 49.6, 51.0.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

from collections.abc import Mapping

from mambaout_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mambaout_jax.weights.catalog import weights_of

# Drop-path rate of the last block; it rises linearly from 0 in the first block.
DROP_PATH = {"mambaout_tiny": 0.3, "mambaout_small": 0.4, "mambaout_base": 0.6}
# mmengine exempts a parameter whose name has "norm" in it, and tables of relative positions; all
# others decay, biases and depthwise kernels too, and the heads' batch norms, there named "bn".
DECAY_RULES = (
    (r"^/(backbone|neck)/.*norm", False),
    (r"/(relative_position_bias\w*|pos_embed)$", False),
    (r"", True),
)


def get_config(model: str = "mambaout_tiny"):
    return ade20k_recipe(model, DROP_PATH)


def ade20k_recipe(model: str, drop_path: Mapping[str, float | None], learning_rate: float = 1e-4):
    """The paper's recipe; recipes beside this file begin with it.

    Args:
        model: the backbone.
        drop_path: the recipe's backbones and their rates; None: the one of their pre-training.
        learning_rate: peak; most others took 6e-5, the rate of Swin.

    Raises:
        ValueError: `model` is none of the recipe's.
    """
    if model not in drop_path:
        raise ValueError(
            f"{model!r} is not a model of this recipe; models are {', '.join(drop_path)}; "
            "experiments/ade20k/ has a recipe for each family of the paper's Table 3"
        )
    config = default_config()
    config.task = "segmentation"
    config.batch_size = 16
    config.model.name = model
    config.model.drop_path = drop_path[model]
    config.model.dtype = "bfloat16"
    config.model.pretrained = next(iter(weights_of(model)), "")
    set_data(config)
    set_optimisation(config, learning_rate)
    return config


def set_data(config):
    config.data.source = "ade20k"
    config.data.image_size = 512
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.augment.flip_probability = 0.5
    config.segmentation.long_side = 2048
    config.segmentation.scale = (0.5, 2.0)
    config.segmentation.max_class_share = 0.75
    config.segmentation.photometric = True
    config.segmentation.auxiliary_weight = 0.4
    config.segmentation.evaluation_mode = "whole"
    config.evaluation.batch_size = 16


def set_optimisation(config, learning_rate):
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 16
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.optimizer.decay_rules = DECAY_RULES
    config.ema.decay = 0.0

    config.schedule.decay = "linear"
    config.schedule.total_steps = 159_999
    config.schedule.cooldown_steps = 1  # mmengine's line ends at the last update, which is at 0
    config.schedule.warmup_steps = 1500
    config.schedule.warmup_reaches_peak = True  # mmengine's ramp is full at update 1,499
    config.schedule.warmup_learning_rate = 1e-6 * learning_rate
    config.schedule.final_learning_rate = 0.0
    config.evaluation.every_steps = 16_000
    config.checkpoint.every_steps = 16_000
