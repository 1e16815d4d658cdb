# SPDX-License-Identifier: Apache-2.0
"""InternImage on ImageNet-1k, as its authors trained it (arXiv 2211.05778, and its code): as Swin.

    mambaout train --config experiments/imagenet/internimage.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/internimage.py:internimage_b --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: internimage_t (the default), internimage_s or internimage_b.

Sources, in github.com/OpenGVLab/InternImage, classification/:

    config.py                         128 images a GPU, 300 epochs, warm-up 20, weight decay 0.05,
                                      clipping at 5, the rates 5e-4, from 5e-7, to 5e-6; all
                                      augmentation
    main.py                           these rates are for 512 images; mixed precision
    lr_scheduler.py                   the cosine runs from the start, behind the warm-up
    configs/internimage_*_1k_224.yaml drop path 0.1, 0.4, 0.5; the average's decay 0.9999
    optimizer.py                      what decays: whatever has two axes or more

What differs: this computes in bfloat16, the script in float16 with a scaled loss. 8 GPUs are
assumed. The head's batch norm sees the whole micro-batch, there the images of one GPU; for this
reason fewer devices with --config.accumulate_steps=2, 4 or 8 make nearly the same update, and not
quite.

Top-1 accuracy as published, at 224 pixels: t 83.5, s 84.2, b 84.9.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("internimage_t", "internimage_s", "internimage_b")


def get_config(model: str = "internimage_t"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    return config
