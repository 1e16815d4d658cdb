# SPDX-License-Identifier: Apache-2.0
"""EfficientVMamba on ImageNet-1k, as its authors' logs say it was trained (arXiv 2403.09977).

    mambaout train --config experiments/imagenet/efficientvmamba.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/efficientvmamba.py:efficientvmamba_base ...

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: efficientvmamba_tiny (the default), efficientvmamba_small or
efficientvmamba_base.

Sources, in github.com/TerryPei/EfficientVMamba at 0bc5ee2:

    classification/logs/log_efficient_vmamba_{tiny,small,base}.txt
                                   16 GPUs of 128 images, of 64 for base; rate 2e-3 with either,
                                   from 1e-7, to 1e-6; 300 epochs, warm-up 20, weight decay 0.04,
                                   clipping at 1, the average's decay 0.9999, drop path 0.1, mixed
                                   precision; mixup 0.2, cutmix 1, erasing 0.25, smoothing 0.1
    classification/lib/            schedule, decay and images as in LocalMamba, see local_vim.py

The files in classification/configs say drop path 0.2, rate 5e-4 for 512 images, weight decay 0.05
and clipping at 5; they belong to another script, classification/main.py, and not to these logs.

What differs: as in local_vim.py, and bfloat16 instead of float16 with a scaled loss; batch norms
see the whole micro-batch, there the images of one GPU. For this reason fewer devices with
--config.accumulate_steps=2, 4 or 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: tiny 76.5, small 78.7, base 81.8.

Hardware: 8 GPUs or TPU chips; the authors trained on 16 GPUs.
Result: not run here.
"""

import runpy
from pathlib import Path

_FOLDER = Path(__file__).parent
_VMAMBA = runpy.run_path(str(_FOLDER / "vmamba.py"))
_LOCAL_VIM = runpy.run_path(str(_FOLDER / "local_vim.py"))

MODELS = ("efficientvmamba_tiny", "efficientvmamba_small", "efficientvmamba_base")


def get_config(model: str = "efficientvmamba_tiny"):
    config = _LOCAL_VIM["local_mamba_recipe"](model, MODELS)
    base = model == "efficientvmamba_base"
    config.batch_size = 1024 if base else 2048
    config.augment.mix_group_size = 64 if base else 128
    config.model.dtype = "bfloat16"
    config.model.drop_path = 0.1

    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay_rules = _VMAMBA["DECAY_RULES"]
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.9999
    return config
