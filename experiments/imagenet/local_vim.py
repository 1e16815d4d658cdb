# SPDX-License-Identifier: Apache-2.0
"""LocalVim on ImageNet-1k, as its authors trained it (arXiv 2403.09338, and its code).

    mambaout train --config experiments/imagenet/local_vim.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/local_vim.py:local_vim_small --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: local_vim_tiny (the default), local_vim_tiny_middle_cls_token,
local_vim_small or local_vim_small_searched.

Sources, in github.com/hunto/LocalMamba at 75e5d1f:

    README.md                               8 GPUs of 128 images, drop path 0.1
    classification/configs/strategies/local_mamba/config.yaml
                                            rate 1e-3, not scaled, from 1e-7, to 1e-6; 300 epochs,
                                            warm-up 20, weight decay 0.04, no average; mixup 0.2,
                                            cutmix 1, erasing 0.25
    classification/lib/utils/args.py        label smoothing 0.1; no clipping, float32
    classification/lib/utils/scheduler.py   the cosine after the warm-up, a rate for each update
    classification/lib/utils/optim.py       what decays: whatever has two axes or more, but for
                                            class token and position embedding
    classification/lib/dataset/             bicubic; erasing before mixing; evaluation on the middle
                                            224 of 256 pixels

The README gives the command of the tiny model alone; the others are taken to be trained as it was.

What differs: RandAugment is "rand-m9-mstd0.5" there, in which some operations weaken as the
magnitude grows, and draws four more: distort, zoom, blur and skew. The project has those of timm's
"rand-m9-mstd0.5-inc1" only. The warm-up rises once an epoch there, and with every update here.
Fewer devices make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: tiny 76.2, tiny with the middle token 77.8 (README.md),
small 81.2; which of the small models that was is not known.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = (
    "local_vim_tiny",
    "local_vim_tiny_middle_cls_token",
    "local_vim_small",
    "local_vim_small_searched",
)


def get_config(model: str = "local_vim_tiny"):
    config = local_mamba_recipe(model, MODELS)
    config.optimizer.decay_rules = ((r"/A_log$", True),)
    return config


def local_mamba_recipe(model: str, models: tuple[str, ...]):
    """What LocalMamba's config.yaml says; arguments and errors as of `swin_recipe` in vmamba.py."""
    config = _VMAMBA["swin_recipe"](model, models)
    config.augment.mixup_alpha = 0.2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_batch_size = 0  # the rate is not scaled
    config.optimizer.weight_decay = 0.04
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_learning_rate = 1e-7
    config.schedule.final_learning_rate = 1e-6
    config.ema.decay = 0.0
    return config
