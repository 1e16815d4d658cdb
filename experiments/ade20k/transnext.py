# SPDX-License-Identifier: Apache-2.0
"""UperNet with TransNeXt on ADE20K, as its authors trained it (arXiv 2311.17132, and its code).

    mambaout train --config experiments/ade20k/transnext.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/transnext.py:transnext_base --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: transnext_tiny (the default), transnext_small or transnext_base. It starts
from its published ImageNet weights.

Sources, in github.com/DaiShiResearch/TransNeXt at c8a9974, segmentation/upernet/:

    configs/upernet_transnext_*_512x512_160k_ade20k_ss.py  rate 6e-5, weight decay 0.05 and what
                                                           does not decay, evaluation by crops of
                                                           512 every 341 pixels
    transnext_cuda.py                                      drop path

What differs: the code computes in float32, this in bfloat16.

mIoU as published, at one scale and at many: tiny 51.1, 51.2, small 52.2, 52.3, base 53.0, 53.4.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"transnext_tiny": 0.4, "transnext_small": 0.6, "transnext_base": 0.7}
DECAY_RULES = (
    (r"^/(backbone|neck)/.*norm", False),
    (r"/(query_embedding|temperature|relative_pos_bias_local)$", False),
    (r"/position_bias/", False),  # the continuous ones, "cpb" there
    (r"", True),
)


def get_config(model: str = "transnext_tiny"):
    config = _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rules = DECAY_RULES
    config.segmentation.evaluation_mode = "slide"
    config.segmentation.slide_stride = 341
    return config
