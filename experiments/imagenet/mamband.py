# SPDX-License-Identifier: Apache-2.0
"""Mamba-ND on ImageNet-1k, as its authors trained it (arXiv 2402.05892, and its code).

    mambaout train --config experiments/imagenet/mamband.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/mamband.py:mamba2d_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: mamba2d_small (the default) or mamba2d_base.

Sources, in github.com/jacklishufan/Mamba-ND at 4f70284:

    image_classification/config/mamba2d.py, mamba2d_b.py
                         128 images a GPU; rate 1e-3, not scaled, from a ten-thousandth of it, to
                         1e-5; each layer 0.95 times the rate of the next one; 300 epochs, warm-up
                         10, weight decay 0.1, clipping at 2, the average's decay 0.9999, drop path
                         0.1; mixup 0.8, cutmix 1, RandAugment and behind it colour jitter 0.4
    image_classification/config/base/imagenet_bs1024_adamw_swin.py
                         8 GPUs of 128 images
    image_classification/tools/train.py
                         float32 unless asked

What differs: the cosine begins at epoch 5 there, and multiplies the second half of the warm-up;
here it begins when the warm-up ends, which makes at most 1.6 % of the peak rate. Norms and A_log
have a tenth of the weight decay there, here none. Dropout is 0.1 there; the models here have none.
Fewer devices make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: small 81.7, base 83.0.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("mamba2d_small", "mamba2d_base")


def get_config(model: str = "mamba2d_small"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.augment.color_jitter = 0.4

    config.optimizer.learning_rate_batch_size = 0  # the rate is not scaled
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 2.0
    config.optimizer.layer_decay = 0.95
    config.schedule.warmup_epochs = 10.0
    config.schedule.warmup_learning_rate = 1e-7
    return config
