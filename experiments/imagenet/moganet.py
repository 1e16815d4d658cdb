# SPDX-License-Identifier: Apache-2.0
"""MogaNet on ImageNet-1k, as its authors trained it (arXiv 2211.03295, and its code).

    mambaout train --config experiments/imagenet/moganet.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/moganet.py:moganet_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: moganet_tiny (the default), moganet_small, moganet_base or moganet_large.

Sources, in github.com/Westlake-AI/MogaNet at 386b548:

    TRAINING.md         8 GPUs of 128 images, rate 1e-3, drop path 0.1, 0.1, 0.2, 0.3; tiny: weight
                        decay 0.04, RandAugment of magnitude 7, mixup 0.1, mixed precision, no
                        average; others: weight decay 0.05, to 1e-5, the average's decay 0.9999
    train.py            300 epochs and 10 of cool-down, warm-up 5 from 1e-5, to 1e-6 if nothing else
                        is said, no clipping; images are erased before they are mixed; evaluation on
                        the middle nine tenths
    models/moganet.py   layer scales have four axes, so that timm's optimisers let them decay

What differs: tiny computes in bfloat16 instead of float16 with a scaled loss. Batch norms see the
whole micro-batch, there the images of one GPU. For this reason fewer devices with
--config.accumulate_steps=2, 4 or 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: tiny 79.0, small 83.4, base 84.3, large 84.7.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VAN = runpy.run_path(str(Path(__file__).parent / "van.py"))

MODELS = ("moganet_tiny", "moganet_small", "moganet_base", "moganet_large")


def get_config(model: str = "moganet_tiny"):
    config = _VAN["timm_recipe"](model, MODELS)
    config.data.crop_fraction = 0.9
    config.augment.erase_after_mixing = False
    config.optimizer.decay_rules = ((r"/gamma$", True),)
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_learning_rate = 1e-5
    if model == "moganet_tiny":
        config.model.dtype = "bfloat16"
        config.augment.rand_augment_magnitude = 7.0
        config.augment.mixup_alpha = 0.1
        config.optimizer.weight_decay = 0.04
        config.schedule.final_learning_rate = 1e-6
    else:
        config.ema.decay = 0.9999
    return config
