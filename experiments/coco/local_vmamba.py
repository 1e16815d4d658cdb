# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with LocalVMamba on COCO (arXiv 2403.09338, and its code): as Swin.

    mambaout train --config experiments/coco/local_vmamba.py --config.data.path=DIR
    mambaout train --config experiments/coco/local_vmamba.py:local_vmamba_small,3x ...

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
local_vmamba_tiny (the default) or local_vmamba_small. After a comma follows the schedule, 1x or 3x,
as in mambaout.py here. Weights to start from are given as --config.model.pretrained=FILE; none are
fetched.

Source, in github.com/hunto/LocalMamba at 75e5d1f:
detection/configs/local_mamba/mask_rcnn_local_vssm_*_fpn_coco.py, which name no drop path and
inherit 0.2 and all else from configs/swin/, a copy of mmdet's. The 3x schedule is that of their
*_ms_3x.py.

What differs: this computes in bfloat16, the code in float16 with a scaled loss.

Box AP and mask AP as published, of 1x: tiny 46.7, 42.2, small 48.4, 43.2.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"local_vmamba_tiny": 0.2, "local_vmamba_small": 0.2}


def get_config(argument: str = "local_vmamba_tiny"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
