# SPDX-License-Identifier: Apache-2.0
"""MobileViTv3 on ImageNet-1k, as its authors trained it (arXiv 2209.15159, and its code).

    mambaout train --config experiments/imagenet/mobilevit_v3.py --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The model is
mobilevitv3_xs.

Sources, in github.com/micronDLA/MobileViTv3 at d381beb:

    MobileViTv3-v1/config/classification/mobilevitv3_x_small_oneserver.yaml
                32 images a GPU, mixed precision; rate 2e-3, from and to 2e-4, warm-up of 3,000
                updates, the same rate for an epoch; 300 epochs, weight decay 0.01 of all
                parameters, label smoothing 0.1; the average's decay 0.9995; dropout 0.1; random
                crops, bilinear, and flips

and of github.com/apple/ml-cvnets at d38a116, data/datasets/classification/imagenet.py: evaluation
on the middle 256 of 288 pixels; values of pixels from 0 to 1 as they are.

The paper has 384 images in an update. What differs: images of a batch there have one of 25 sizes
from 160 to 320 pixels and smaller ones come in larger batches, here all have 256; the script
computes in float16 with a scaled loss, this in bfloat16. Batch norms see the whole micro-batch,
there the images of one GPU.

Top-1 accuracy as published, at 256 pixels: 76.7.

Hardware: 12 GPUs; 8 devices divide the batch, too.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("mobilevitv3_xs",)


def get_config(model: str = "mobilevitv3_xs"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.batch_size = 384
    config.model.dtype = "bfloat16"

    config.data.image_size = 256
    config.data.crop_fraction = 256 / 288
    config.data.interpolation = "bilinear"
    config.data.mean = (0.0, 0.0, 0.0)
    config.data.std = (1.0, 1.0, 1.0)
    config.augment.rand_augment_layers = 0
    config.augment.mixup_alpha = 0.0
    config.augment.cutmix_alpha = 0.0
    config.augment.erase_probability = 0.0
    config.augment.mix_group_size = 0

    config.optimizer.learning_rate = 2e-3
    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_rules = ((r".", True),)
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_steps = 3000
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.schedule.warmup_learning_rate = 2e-4
    config.schedule.final_learning_rate = 2e-4
    config.ema.decay = 0.9995
    return config
