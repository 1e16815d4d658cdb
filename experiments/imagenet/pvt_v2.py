# SPDX-License-Identifier: Apache-2.0
"""PVTv2 on ImageNet-1k, as its authors trained it (arXiv 2106.13797, and its code): as DeiT.

    mambaout train --config experiments/imagenet/pvt_v2.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/pvt_v2.py:pvt_v2_b0 --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: pvt_v2_b0 is the only one.

Sources, in github.com/whai362/PVT:

    classification/README.md                    8 GPUs
    classification/configs/pvt_v2/pvt_v2_b0.py  drop path 0.1, no clipping
    classification/main.py                      128 images a GPU; the rate, 5e-4, is for 512 images;
                                                300 epochs, warm-up 5 from 1e-6, to 1e-5; weight
                                                decay 0.05; no average; all augmentation; mixed
                                                precision; evaluation on the middle 224 of 256
                                                pixels

What differs: the script repeats augmentation, so that an epoch shows a third of the images three
times each; the project cannot do that, and shows each once. The script's rates are an epoch late:
the first two epochs have the first rate. A cool-down of 10 epochs is set there and never reached.
This computes in bfloat16, the script in float16 with a scaled loss. Fewer devices make the same
update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: 70.5.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("pvt_v2_b0",)


def get_config(model: str = "pvt_v2_b0"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.0
    return config
