# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer on ImageNet-1k, as its authors trained it (arXiv 2107.00641): as Swin.

    mambaout train --config experiments/imagenet/focal.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/focal.py:focal_small --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: focal_tiny (the default) or focal_small.

Sources, in github.com/microsoft/Focal-Transformer at 57bb303:

    classification/get_started.md        8 GPUs of 128 images
    config.py                            300 epochs, warm-up 20, weight decay 0.05, clipping at 5,
                                         the rates 5e-4, from 5e-7, to 5e-6; all augmentation
    main.py                              these rates are for 512 images; mixed precision
    configs/focal_*_patch4_window7_224.yaml
                                         drop path 0.2, 0.3
    classification/focal_transformer.py  tables of relative positions do not decay

What differs: this computes in bfloat16, the script in float16 with a scaled loss. Fewer devices
make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: tiny 82.2, small 83.5.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("focal_tiny", "focal_small")


def get_config(model: str = "focal_tiny"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.ema.decay = 0.0
    return config
