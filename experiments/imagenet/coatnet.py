# SPDX-License-Identifier: Apache-2.0
"""CoAtNet on ImageNet-1k, with the hyper-parameters of its paper (arXiv 2106.04803).

    mambaout train --config experiments/imagenet/coatnet.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/coatnet.py:coatnet_1_224 --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: coatnet_0_224_stride1x1 (the default, of the paper's cost), coatnet_0_224
or another size, 1 or 2, of either.

Source: the table of hyper-parameters in the paper's Appendix A.2; its code is not released. 300
epochs of 4096 images, AdamW, weight decay 0.05, clipping at 1; 10,000 updates of warm-up, which are
32 epochs, to 1e-3, a cosine to 1e-5; RandAugment, mixup of 0.8, label smoothing of 0.1; drop path
0.2, 0.3 and 0.5; no average.

What differs: RandAugment is that of TensorFlow there, of magnitude 15; here it is timm's, whose
largest is 10. What the paper leaves open is chosen: warm-up from 1e-6, groups of 128 images that
share a mixing weight, bfloat16, evaluation on the middle 224 of 256 pixels. Batch norms see the
whole micro-batch; hence fewer devices with --config.accumulate_steps=2, 4 or more make nearly the
same update, and not quite.

Top-1 accuracy as published, at 224 pixels: 0 81.6, 1 83.3, 2 84.1.

Hardware: 32 TPU chips; the authors' is not published.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = (
    "coatnet_0_224_stride1x1",
    "coatnet_1_224_stride1x1",
    "coatnet_2_224_stride1x1",
    "coatnet_0_224",
    "coatnet_1_224",
    "coatnet_2_224",
)


def get_config(model: str = "coatnet_0_224_stride1x1"):
    return google_recipe(model, MODELS)


def google_recipe(model: str, models: tuple[str, ...]):
    """What CoAtNet's paper has; the recipe of MOAT begins with it.

    Args:
        model: what to train; drop path is its published rate.
        models: those of the recipe.

    Raises:
        ValueError: `model` is none of `models`.
    """
    config = _VMAMBA["swin_recipe"](model, models)
    config.model.dtype = "bfloat16"
    config.batch_size = 4096
    config.augment.rand_augment_magnitude = 10.0
    config.augment.rand_augment_deviation = 0.0
    config.augment.rand_augment_probability = 1.0
    config.augment.cutmix_alpha = 0.0
    config.augment.erase_probability = 0.0

    config.optimizer.learning_rate_batch_size = 4096
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_epochs = 32.0
    config.ema.decay = 0.0
    return config
