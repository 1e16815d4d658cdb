# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with SG-Former on COCO (arXiv 2308.12216): as Swin.

    mambaout train --config experiments/coco/sg_former.py --config.data.path=DIR
    mambaout train --config experiments/coco/sg_former.py:sgformer_m,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
sgformer_s (the default) or sgformer_m. After a comma follows the schedule, 1x or 3x, as in
mambaout.py here. Weights to start from are given as --config.model.pretrained=FILE; none are
fetched.

The authors' code, github.com/OliverRensu/SG-Former at b982803, has no detection, and no config is
published: this is Swin's, mmdet 3.3.0's configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py, with
the drop path of pre-training.

What differs from that file: this computes in bfloat16.

Box AP and mask AP as published, of 1x: small 47.4, 42.6, medium 48.2, 43.6.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"sgformer_s": None, "sgformer_m": None}


def get_config(argument: str = "sgformer_s"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
