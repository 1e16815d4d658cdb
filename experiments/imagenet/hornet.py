# SPDX-License-Identifier: Apache-2.0
"""HorNet on ImageNet-1k, as its authors trained it (arXiv 2207.14284, and its code): as ConvNeXt.

    mambaout train --config experiments/imagenet/hornet.py --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The model is
hornet_base_gf.

Sources, in github.com/raoyongming/HorNet at ac9e210:

    TRAINING.md         32 GPUs, 2 micro-batches of 64 images on each, rate 4e-3, drop path 0.5,
                        clipping at 1, RandAugment of magnitude 15, an average
    main.py             300 epochs, warm-up 20 from 0, to 1e-6, weight decay 0.05, the average's
                        decay 0.9999, all augmentation; images are erased before they are mixed
    utils.py            the cosine after the warm-up
    datasets.py         bicubic; evaluation on the middle 224 of 256 pixels
    optim_factory.py    what decays: whatever has two axes or more, filters among it

RandAugment's magnitudes end at 10, so that one of 15 with a deviation of 0.5 is always 10. Fewer
devices make the same update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: 84.3.

Hardware: 8 GPUs or TPU chips; the authors trained on 32 GPUs.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("hornet_base_gf",)


def get_config(model: str = "hornet_base_gf"):
    config = convnext_recipe(model, MODELS)
    config.augment.rand_augment_magnitude = 10.0
    config.augment.rand_augment_deviation = 0.0
    config.optimizer.clip_norm = 1.0
    return config


def convnext_recipe(model: str, models: tuple[str, ...]):
    """ConvNeXt's recipe, 4096 images at once, which recipes beside this file begin with.

    Args:
        model: what to train; drop path is its published rate.
        models: those of the recipe.

    Raises:
        ValueError: `model` is none of `models`.
    """
    config = _VMAMBA["swin_recipe"](model, models)
    config.batch_size = 4096
    config.augment.mix_group_size = 64
    config.optimizer.learning_rate = 4e-3
    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_learning_rate = 0.0
    config.schedule.final_learning_rate = 1e-6
    return config
