# SPDX-License-Identifier: Apache-2.0
"""MViTv2 on ImageNet-1k, as its authors trained it (arXiv 2112.01526, and its code).

    mambaout train --config experiments/imagenet/mvit_v2.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/mvit_v2.py:mvitv2_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: mvitv2_small (the default) or mvitv2_base.

Sources, in github.com/facebookresearch/mvit:

    configs/MVITv2_{S,B}.yaml  a rate of 2.5e-4, weight decay 0.05, clipping at 1, 300 epochs, drop
                               path 0.1 and 0.3
    mvit/config/defaults.py    256 images, warm-up 70 from 1e-8, to 1e-6; RandAugment of six layers
                               and all other augmentation; evaluation on the middle 224 of 256
                               pixels; float32; what decays: whatever has two axes or more
    README.md                  8 GPUs

Tables of relative positions have two axes, and decay. With more machines the rates grow in
proportion to the batch there; --config.batch_size does not do so here. Fewer devices make the same
update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: small 83.6, base 84.4.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("mvitv2_small", "mvitv2_base")
DECAY_RULES = ((r"/attention/(rows|columns)$", True),)


def get_config(model: str = "mvitv2_small"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.batch_size = 256
    config.augment.rand_augment_layers = 6
    config.augment.mix_group_size = 32

    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.clip_norm = 1.0
    config.optimizer.decay_rules = DECAY_RULES
    config.schedule.warmup_epochs = 70.0
    config.schedule.warmup_learning_rate = 1e-8
    config.schedule.final_learning_rate = 1e-6
    config.ema.decay = 0.0
    return config
