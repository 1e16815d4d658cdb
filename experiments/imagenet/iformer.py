# SPDX-License-Identifier: Apache-2.0
"""iFormer on ImageNet-1k, as its authors trained it (arXiv 2205.12956, and its code).

    mambaout train --config experiments/imagenet/iformer.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/iformer.py:iformer_large --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: iformer_small (the default) or iformer_large.

Sources, in github.com/sail-sg/iFormer at 725d8e7:

    README.md   8 GPUs of 128 images
    checkpoint/iformer_small/args.yaml, checkpoint/iformer_large/args.yaml
                rate 1e-3, not scaled, from 1e-6, to 1e-6 (small) or 1e-5 (large), the same for an
                epoch; 300 epochs and a cool-down of 10, warm-up 5; weight decay 0.05; drop path 0.2
                and 0.5; large: clipping at 1, mixed precision; no average; RandAugment, mixup 0.8,
                cutmix 1, erasing before them
    models/inception_transformer.py
                evaluation on the middle 0.9 of the shorter side; what decays: whatever has two axes
                or more, the tables of positions, too

What differs: large repeats augmentation there, so that an epoch shows a third of the images three
times each; the project cannot do that, and shows each once; and it computes in float16 with a
scaled loss, this in bfloat16. Batch norms see the whole micro-batch, there the images of one GPU;
for this reason fewer devices with --config.accumulate_steps=2, 4 or 8 make nearly the same update,
and not quite.

Top-1 accuracy as published, at 224 pixels: small 83.4, large 84.8.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("iformer_small", "iformer_large")


def get_config(model: str = "iformer_small"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    large = model == "iformer_large"
    config.data.crop_fraction = 0.9
    config.augment.random_interpolation = True

    config.model.dtype = "bfloat16" if large else "float32"
    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.decay_rules = ((r"/pos_embed$", True),)
    config.optimizer.clip_norm = 1.0 if large else 0.0
    config.schedule.warmup_epochs = 5.0
    config.schedule.cooldown_epochs = 10.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.schedule.final_learning_rate = 1e-5 if large else 1e-6
    config.ema.decay = 0.0
    return config
