# SPDX-License-Identifier: Apache-2.0
"""PoolFormer on ImageNet-1k, as its authors trained it (arXiv 2111.11418, and its code).

    mambaout train --config experiments/imagenet/poolformer.py --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The model is
poolformer_s24.

Sources, in github.com/sail-sg/poolformer at a075575:

    README.md              8 GPUs of 128 images, rate 1e-3, drop path 0.1, mixed precision
    train.py               300 epochs and 10 of cool-down, warm-up 5, the rates from 1e-6, to 1e-5,
                           weight decay 0.05, no clipping, no average, all augmentation
    models/poolformer.py   evaluation on the middle nine tenths

What differs: it computes in bfloat16 instead of float16 with a scaled loss. Fewer devices make the
same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: 80.3.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VAN = runpy.run_path(str(Path(__file__).parent / "van.py"))

MODELS = ("poolformer_s24",)


def get_config(model: str = "poolformer_s24"):
    config = _VAN["timm_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.data.crop_fraction = 0.9
    config.schedule.warmup_epochs = 5.0
    return config
