# SPDX-License-Identifier: Apache-2.0
"""CSWin on ImageNet-1k, as its authors trained it (arXiv 2107.00652, and its code).

    mambaout train --config experiments/imagenet/cswin.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/cswin.py:cswin_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: cswin_tiny (the default), cswin_small or cswin_base.

Sources, in github.com/microsoft/CSWin-Transformer at f111ae2:

    README.md         8 GPUs of 256 images at 2e-3, weight decay 0.05, the average's decay 0.99984;
                      base: 128 images at 1e-3, 0.1 and 0.99992; drop path 0.2, 0.4, 0.5; warm-up 20
    main.py           300 epochs and a cool-down of 10, from 1e-6, to 1e-5, mixed precision, no
                      clipping, all augmentation; the loader mixes before it erases
    models/cswin.py   evaluation on the middle 0.9 of the side

What differs: this computes in bfloat16, the script in float16 with a scaled loss. Fewer devices
make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: tiny 82.8, small 83.6, base 84.2.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("cswin_tiny", "cswin_small", "cswin_base")


def get_config(model: str = "cswin_tiny"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    base = model == "cswin_base"
    config.model.dtype = "bfloat16"
    config.batch_size = 1024 if base else 2048
    config.data.crop_fraction = 0.9
    config.augment.random_interpolation = True
    config.augment.erase_after_mixing = True
    config.augment.mix_group_size = 128 if base else 256

    config.optimizer.weight_decay = 0.1 if base else 0.05
    config.optimizer.clip_norm = 0.0
    config.schedule.cooldown_epochs = 10.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.99992 if base else 0.99984
    return config
