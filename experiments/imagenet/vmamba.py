# SPDX-License-Identifier: Apache-2.0
"""VMamba on ImageNet-1k, as its authors trained it (arXiv 2401.10166, and its code): as Swin.

    mambaout train --config experiments/imagenet/vmamba.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/vmamba.py:vmamba_v0_tiny --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: vmamba_v9_tiny (the default), vmamba_v9_small, vmamba_v9_base,
vmamba_v0_tiny, vmamba_v0_small or vmamba_v0_base.

Sources, in github.com/MzeroMiko/VMamba at 2ed52ea:

    classification/config.py            300 epochs, warm-up 20, weight decay 0.05, clipping at 5,
                                        AdamW, the cosine after the warm-up, all augmentation; the
                                        rates 5e-4, from 5e-7, to 5e-6
    classification/main.py              these rates are for 512 images; the average's decay 0.9999
    README.md                           8 GPUs of 128 images; no average for vmamba_v0_tiny
    classification/data/build.py        evaluation on the middle 224 of 256 pixels
    classification/utils/optimizer.py   what decays: whatever has two axes or more
    classification/configs/vssm/        drop path: vmambav2_*_224.yaml for v9, vmambav0_*_224.yaml
                                        for v0

What is as there is the update: fewer devices make the same one with --config.accumulate_steps=2, 4
or 8. What differs: the script computes in float16 with a scaled loss, this in bfloat16. Should you
change the batch, the first and last rates are scaled there and are not here.

Top-1 accuracy as published, at 224 pixels: v9 82.5, 83.6, 83.9; v0 82.2, 83.5, 83.7 (tiny, small,
base).

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

from mambaout_jax.config import default_config

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

MODELS = (
    "vmamba_v9_tiny",
    "vmamba_v9_small",
    "vmamba_v9_base",
    "vmamba_v0_tiny",
    "vmamba_v0_small",
    "vmamba_v0_base",
)
# The code exempts biases by name and whatever has one axis. A_log has two, and the step sizes'
# biases, stacked for four paths, have two and another name.
DECAY_RULES = ((r"/(A_log|dt_proj/bias)$", True),)


def get_config(model: str = "vmamba_v9_tiny"):
    config = swin_recipe(model, MODELS)
    config.model.dtype = "bfloat16"
    config.optimizer.decay_rules = DECAY_RULES
    if model == "vmamba_v0_tiny":
        config.ema.decay = 0.0
    return config


def swin_recipe(model: str, models: tuple[str, ...]):
    """Swin's recipe, with the average that VMamba adds; recipes beside this file begin with it.

    Args:
        model: what to train; drop path is its published rate.
        models: those of the recipe.

    Raises:
        ValueError: `model` is none of `models`.
    """
    if model not in models:
        raise ValueError(
            f"{model!r} is not a model of this recipe; models are {', '.join(models)}; "
            "experiments/imagenet/ has a recipe for each family"
        )
    config = default_config()
    config.batch_size = 1024
    config.model.name = model

    _MAMBAOUT["set_data"](config)
    config.data.crop_fraction = 0.875

    _MAMBAOUT["set_augmentation"](config)
    config.augment.random_interpolation = False  # bicubic
    config.augment.erase_after_mixing = False  # each image is erased as it is loaded
    config.augment.mix_group_size = 128  # one GPU's images

    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_batch_size = 1024
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 5.0
    config.schedule.total_epochs = 300.0
    config.schedule.warmup_epochs = 20.0
    config.schedule.warmup_prefix = True
    config.schedule.per_epoch = False
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.final_learning_rate = 1e-5
    config.ema.decay = 0.9999
    return config
