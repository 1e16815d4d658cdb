# SPDX-License-Identifier: Apache-2.0
"""InceptionNeXt on ImageNet-1k, as its authors trained it (arXiv 2303.16900, and its code).

    mambaout train --config experiments/imagenet/inceptionnext.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/inceptionnext.py:inception_next_atto ...

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: inception_next_tiny (the default) or inception_next_atto.

Sources, in github.com/sail-sg/inceptionnext at 3f9769c:

    scripts/inceptionnext/train_inceptionnext_tiny.sh
                              8 GPUs, 4 micro-batches of 128 images on each, rate 4e-3, warm-up 20,
                              drop path 0.1
    scripts/inceptionnext/train_inceptionnext_atto.sh
                              4 GPUs of 320 images, rate 1e-3, from 5e-7 and to it, warm-up 5, 600
                              epochs, drop path 0.1, mixup 0.2, erasing 0.1, RandAugment
                              "rand-m5-inc1-mstd101"
    train.py                  as MambaOut's: 10 epochs of cool-down, weight decay 0.05
    models/inceptionnext.py   evaluation on the middle 224 of 256 pixels

What differs: RandAugment of atto draws magnitudes evenly from 0 to 5 there; here they have the same
mean and deviation and are normal. Its script passes the model and drop path by the names of other
variables; here they are what its own variables say. Batch norms see the whole micro-batch,
there the images of one GPU.

Top-1 accuracy as published, at 224 pixels: atto 75.3, tiny 82.3.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VAN = runpy.run_path(str(Path(__file__).parent / "van.py"))

MODELS = ("inception_next_atto", "inception_next_tiny")


def get_config(model: str = "inception_next_tiny"):
    config = _VAN["timm_recipe"](model, MODELS)
    if model == "inception_next_tiny":
        config.batch_size = 4096
        config.accumulate_steps = 4
        return config
    config.batch_size = 1280
    config.augment.mix_group_size = 320
    config.augment.mixup_alpha = 0.2
    config.augment.erase_probability = 0.1
    config.augment.rand_augment_magnitude = 2.5
    config.augment.rand_augment_deviation = 1.44
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_batch_size = 1280
    config.schedule.total_epochs = 600.0
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_learning_rate = 5e-7
    config.schedule.final_learning_rate = 5e-7
    return config
