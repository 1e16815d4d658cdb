# SPDX-License-Identifier: Apache-2.0
"""SG-Former on ImageNet-1k, as its authors trained it (arXiv 2308.12216, and its code).

    mambaout train --config experiments/imagenet/sg_former.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/sg_former.py:sgformer_m --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: sgformer_s (the default) or sgformer_m.

Sources, in github.com/OliverRensu/SG-Former at b982803:

    README.md   8 GPUs of 128 images, mixed precision; rate 1e-3, weight decay 0.05, warm-up 20;
                drop path 0.1 and 0.2; the average's decay 0.99992
    main.py     the rate is not scaled, from 1e-6, to 1e-5, the same for an epoch; 300 epochs and a
                cool-down of 10; no clipping; RandAugment, mixup 0.8, cutmix 1, erasing behind them
    sgformer.py evaluation on the middle 0.9 of the shorter side; what decays: whatever has two axes
                or more, the table of positions, too

What differs: the script computes in float16 with a scaled loss, this in bfloat16. Fewer devices
make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: small 83.2, medium 84.1.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("sgformer_s", "sgformer_m")


def get_config(model: str = "sgformer_s"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.data.crop_fraction = 0.9
    config.augment.random_interpolation = True
    config.augment.erase_after_mixing = True  # timm's loader mixes while it collates

    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.decay_rules = ((r"/pos_embed$", True),)
    config.optimizer.clip_norm = 0.0
    config.schedule.cooldown_epochs = 10.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.99992
    return config
