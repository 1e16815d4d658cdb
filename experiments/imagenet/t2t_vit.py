# SPDX-License-Identifier: Apache-2.0
"""T2T-ViT on ImageNet-1k, as its authors trained it (arXiv 2101.11986, and its code).

    mambaout train --config experiments/imagenet/t2t_vit.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/t2t_vit.py:t2t_vit_24 --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: t2t_vit_14 (the default), t2t_vit_7, t2t_vit_19, t2t_vit_24, or one of the
same models t2t_vit_7_kqv025 and t2t_vit_14_kqv025.

Sources, in github.com/yitu-opensource/T2T-ViT at 0f63dc9:

    README.md   8 GPUs of 64 images, mixed precision; rate 1e-3 and weight decay 0.03 for
                t2t_vit_7, 5e-4 and 0.05 for t2t_vit_14, 5e-4 and 0.065 for t2t_vit_19, of which
                t2t_vit_24 is trained like
    main.py     the rate is not scaled, from 1e-6, to 1e-5, the same for an epoch; 300 epochs and a
                cool-down of 10, warm-up 10; drop path 0.1; the average's decay 0.99996; no
                clipping; RandAugment, mixup 0.8, cutmix 1, erasing behind them
    models/t2t_vit.py
                evaluation on the middle 0.9 of the shorter side; what decays: whatever has two axes
                or more, but for the class token

What differs: the script computes in float16 with a scaled loss, this in bfloat16. Fewer devices
make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: 71.7, 81.5, 81.9, 82.3 (7, 14, 19, 24).

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

# (rate, weight decay)
MODELS = {
    "t2t_vit_7": (1e-3, 0.03),
    "t2t_vit_14": (5e-4, 0.05),
    "t2t_vit_19": (5e-4, 0.065),
    "t2t_vit_24": (5e-4, 0.065),
    "t2t_vit_7_kqv025": (1e-3, 0.03),
    "t2t_vit_14_kqv025": (5e-4, 0.05),
}


def get_config(model: str = "t2t_vit_14"):
    config = _VMAMBA["swin_recipe"](model, tuple(MODELS))
    config.batch_size = 512
    config.model.dtype = "bfloat16"
    config.data.crop_fraction = 0.9
    config.augment.random_interpolation = True
    config.augment.erase_after_mixing = True  # timm's loader mixes while it collates
    config.augment.mix_group_size = 64

    config.optimizer.learning_rate, config.optimizer.weight_decay = MODELS[model]
    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_epochs = 10.0
    config.schedule.cooldown_epochs = 10.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.99996
    return config
