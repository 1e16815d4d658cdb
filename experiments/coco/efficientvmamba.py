# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with EfficientVMamba-B on COCO (arXiv 2403.09977, and its code): as Swin.

    mambaout train --config experiments/coco/efficientvmamba.py --config.data.path=DIR
    mambaout train --config experiments/coco/efficientvmamba.py:efficientvmamba_base,3x ...

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The backbone is efficientvmamba_base.
After a comma follows the schedule, 1x or 3x, as in mambaout.py here. Weights to start from are
given as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/TerryPei/EfficientVMamba at 0bc5ee2:
detection/configs/efficient/mask_rcnn_vssm_fpn_coco_efficient_2292_96.py, which names no drop path
and inherits 0.2 and all else from configs/swin/, a copy of mmdet's. That file has the 3x schedule,
many scales included; the MambaOut paper lists its figures under 1x.

What differs: the code computes in float32, this in bfloat16.

Box AP and mask AP as published: 43.7, 40.2.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"efficientvmamba_base": 0.2}


def get_config(argument: str = "efficientvmamba_base"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
