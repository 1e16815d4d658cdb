# SPDX-License-Identifier: Apache-2.0
"""VAN on ImageNet-1k, as its authors trained it (arXiv 2202.09741, and its code).

    mambaout train --config experiments/imagenet/van.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/van.py:van_b3 --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: van_b0 (the default), van_b2 or van_b3.

Sources, in github.com/Visual-Attention-Network/VAN-Classification at e19779b:

    train.sh        8 GPUs of 128 images, rate 1e-3, drop path 0.1, 0.1, 0.2
    train.py        300 epochs and 10 of cool-down, warm-up 5, the rates from 1e-6 and to it, weight
                    decay 0.05, no clipping, no average, all augmentation
    models/van.py   images as timm 0.4.12 has them by default for transformers: mean and deviation
                    0.5, evaluation on the middle nine tenths

Batch norms see the whole micro-batch, there the images of one GPU. For this reason fewer devices
with --config.accumulate_steps=2, 4 or 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: B0 75.4, B2 82.8, B3 83.9.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_FOLDER = Path(__file__).parent
_MAMBAOUT = runpy.run_path(str(_FOLDER / "mambaout.py"))
_VMAMBA = runpy.run_path(str(_FOLDER / "vmamba.py"))

MODELS = ("van_b0", "van_b2", "van_b3")


def get_config(model: str = "van_b0"):
    config = timm_recipe(model, MODELS)
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_fraction = 0.9
    config.schedule.warmup_epochs = 5.0
    config.schedule.final_learning_rate = 1e-6
    return config


def timm_recipe(model: str, models: tuple[str, ...]):
    """MambaOut's recipe for 1024 images: timm's script, which recipes beside this file begin with.

    Args:
        model: what to train; drop path is its published rate.
        models: those of the recipe.

    Raises:
        ValueError: `model` is none of `models`.
    """
    config = _VMAMBA["swin_recipe"](model, models)
    _MAMBAOUT["set_augmentation"](config)
    _MAMBAOUT["set_optimisation"](config)
    return config
