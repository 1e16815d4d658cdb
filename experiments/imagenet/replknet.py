# SPDX-License-Identifier: Apache-2.0
"""RepLKNet on ImageNet-1k, as its authors trained it (arXiv 2203.06717, and its code).

    mambaout train --config experiments/imagenet/replknet.py --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The model is
replknet_31b; `mambaout_jax.models.replknet.merge` makes replknet_31b_merged of it afterwards.

Sources, in github.com/DingXiaoH/RepLKNet-pytorch at b76808a:

    README.md     8 GPUs, 4 micro-batches of 64 images on each, rate 4e-3, drop path 0.5, warm-up
                  10, 300 epochs, an average
    main.py       weight decay 0.05, from 0, to 1e-6, the average's decay 0.9999, no clipping;
                  images and schedule as HorNet's, see hornet.py
    replknet.py   batch norms see the images of all GPUs, a micro-batch, as here

Fewer devices make the same update.

Top-1 accuracy as published, at 224 pixels: 83.5.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_HORNET = runpy.run_path(str(Path(__file__).parent / "hornet.py"))

MODELS = ("replknet_31b",)


def get_config(model: str = "replknet_31b"):
    config = _HORNET["convnext_recipe"](model, MODELS)
    config.batch_size = 2048
    config.accumulate_steps = 4
    config.schedule.warmup_epochs = 10.0
    return config
