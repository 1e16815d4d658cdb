# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with Swin on COCO (arXiv 2103.14030), as in mmdet.

    mambaout train --config experiments/coco/swin.py --config.data.path=DIR
    mambaout train --config experiments/coco/swin.py:swin_base_patch4_window7_224,3x ...

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
swin_tiny_patch4_window7_224 (the default), swin_small_patch4_window7_224 or
swin_base_patch4_window7_224. After a comma follows the schedule, 1x or 3x, as in mambaout.py here.
Weights to start from are given as --config.model.pretrained=FILE; none are fetched.

Source: mmdet 3.3.0, configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py, and for Small
mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py, which inherits drop path 0.2. No such file is
published for Base; it has the same here.

What differs: this computes in bfloat16, mmdet in float32 for 1x.

Box AP and mask AP as published, of 1x: tiny 42.7, 39.3, small 44.8, 40.9, base 46.9, 42.3.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {
    "swin_tiny_patch4_window7_224": 0.2,
    "swin_small_patch4_window7_224": 0.2,
    "swin_base_patch4_window7_224": 0.2,
}


def get_config(argument: str = "swin_tiny_patch4_window7_224"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
