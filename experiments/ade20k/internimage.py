# SPDX-License-Identifier: Apache-2.0
"""UperNet with InternImage on ADE20K, as its authors trained it (arXiv 2211.05778, and its code).

    mambaout train --config experiments/ade20k/internimage.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/internimage.py:internimage_b --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: internimage_t (the default), internimage_s or internimage_b. Weights to start
from are given as --config.model.pretrained=FILE; none are fetched.

Sources, in github.com/OpenGVLab/InternImage at 31c962d, segmentation/:

    configs/ade20k/upernet_internimage_*_512_160k_ade20k.py  rate 6e-5, weight decay 0.05, drop path
    mmcv_custom/custom_layer_decay_optimizer_constructor.py  what decays: kernels alone

What differs: evaluation there enlarges images to multiples of 32. The code computes in float32,
this in bfloat16.

mIoU as published, at one scale and at many: tiny 47.9, 48.1, small 50.1, 50.9, base 50.8, 51.3.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"internimage_t": 0.2, "internimage_s": 0.3, "internimage_b": 0.4}


def get_config(model: str = "internimage_t"):
    config = _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rules = ()  # the family's: kernels decay, nothing else
    return config
