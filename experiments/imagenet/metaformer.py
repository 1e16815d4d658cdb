# SPDX-License-Identifier: Apache-2.0
"""ConvFormer and CAFormer on ImageNet-1k, as their authors trained them (arXiv 2210.13452).

    mambaout train --config experiments/imagenet/metaformer.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/metaformer.py:convformer_m36 ...

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: caformer_s18 (the default), caformer_s36, caformer_m36, convformer_s18,
convformer_s36 or convformer_m36.

Sources, in github.com/sail-sg/metaformer at 64c534a:

    scripts/{caformer,convformer}/train_*.sh
                              8 GPUs, 4 micro-batches of 128 images on each, warm-up 20; ConvFormer:
                              AdamW, rate 4e-3, drop path 0.2, 0.3, 0.4; CAFormer: LAMB, rate 8e-3,
                              drop path 0.15, 0.3, 0.4, dropout in the head 0, 0.4, 0.4
    train.py                  as MambaOut's: 300 epochs and 10 of cool-down, weight decay 0.05
    metaformer_baselines.py   evaluation on the whole shorter side

What differs: CAFormer is trained with AdamW, at ConvFormer's rate, because the project has no LAMB;
the accuracies below are not of that.

Top-1 accuracy as published, at 224 pixels: CAFormer 83.6, 84.5, 85.2; ConvFormer 83.0, 84.1, 84.5
(S18, S36, M36).

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VAN = runpy.run_path(str(Path(__file__).parent / "van.py"))

MODELS = (
    "caformer_s18",
    "caformer_s36",
    "caformer_m36",
    "convformer_s18",
    "convformer_s36",
    "convformer_m36",
)


def get_config(model: str = "caformer_s18"):
    config = _VAN["timm_recipe"](model, MODELS)
    config.batch_size = 4096
    config.accumulate_steps = 4
    config.data.crop_fraction = 1.0
    if model in ("caformer_s36", "caformer_m36"):
        with config.model.options.unlocked():
            config.model.options.dropout = 0.4
    return config
