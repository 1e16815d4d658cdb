# SPDX-License-Identifier: Apache-2.0
"""EMO on ImageNet-1k, as its authors' log says it was trained (arXiv 2301.01146).

    mambaout train --config experiments/imagenet/emo.py --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The model is
emo_6m.

Sources, in github.com/zhangzjn/EMO at 27d9b40:

    resources/EMO_6M/log_train.txt
                      8 GPUs of 256 images, rate 6e-3, from 1e-6 and to it, 300 epochs, warm-up 20,
                      weight decay 0.05, clipping at 5, mixed precision, the average's decay 0.9998;
                      label smoothing, but neither mixing nor erasing; evaluation on the middle 224
                      of 256 pixels
    model/emo.py      drop path 0.05
    optim/            the cosine runs from the start, behind the warm-up; what decays: whatever has
                      two axes or more

What differs: it computes in bfloat16 instead of float16 with a scaled loss. Batch norms see the
whole micro-batch, there the images of one GPU. For this reason fewer devices with
--config.accumulate_steps=2, 4 or 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: 79.0.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("emo_6m",)


def get_config(model: str = "emo_6m"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.batch_size = 2048
    config.model.dtype = "bfloat16"
    config.augment.random_interpolation = True
    config.augment.mixup_alpha = 0.0
    config.augment.cutmix_alpha = 0.0
    config.augment.mix_group_size = 0
    config.augment.erase_probability = 0.0
    config.optimizer.learning_rate = 6e-3
    config.optimizer.learning_rate_batch_size = 2048
    config.schedule.warmup_prefix = False
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.final_learning_rate = 1e-6
    config.ema.decay = 0.9998
    return config
