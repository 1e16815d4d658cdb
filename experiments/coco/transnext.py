# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with TransNeXt on COCO (arXiv 2311.17132, and its code).

    mambaout train --config experiments/coco/transnext.py --config.data.path=DIR
    mambaout train --config experiments/coco/transnext.py:transnext_base,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
transnext_tiny (the default), transnext_small or transnext_base. After a comma follows the schedule,
1x or 3x, as in mambaout.py here. It starts from its published ImageNet weights.

Sources, in github.com/DaiShiResearch/TransNeXt at c8a9974, detection/maskrcnn/:

    configs/mask_rcnn_transnext_*_fpn_1x_coco.py  the rate, weight decay and what does not decay
    transnext_cuda.py                             drop path

What differs: this computes in bfloat16, the code in float32, Base in float16.

Box AP and mask AP as published, of 1x: tiny 49.9, 44.6, small 51.1, 45.5, base 51.7, 45.9.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
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


def get_config(argument: str = "transnext_tiny"):
    config = _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
    config.optimizer.decay_rules = DECAY_RULES
    return config
