# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with VMamba on COCO (arXiv 2401.10166, and its code): as Swin, one other drop path.

    mambaout train --config experiments/coco/vmamba.py --config.data.path=DIR
    mambaout train --config experiments/coco/vmamba.py:vmamba_v0_base,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
vmamba_v9_tiny (the default), vmamba_v9_small, vmamba_v9_base, vmamba_v0_tiny, vmamba_v0_small or
vmamba_v0_base. After a comma follows the schedule, 1x or 3x, as in mambaout.py here. Weights to
start from are given as --config.model.pretrained=FILE; none are fetched.

Sources, in github.com/MzeroMiko/VMamba at 2ed52ea:

    detection/configs/vssm1/  drop path of v9, in mask_rcnn_vssm_fpn_coco_*.py
    detection/configs/vssm/   v0: they name no drop path and inherit 0.2
    detection/configs/swin/   all else; a copy of mmdet's

What differs: norms of V9's stem and downsampling decay there, as their names, numbers in a
sequence, have no "norm". This computes in bfloat16, the published runs in float16 or float32.

Box AP and mask AP as published, of 1x: v9 47.4, 42.7, 48.7, 43.7, 49.2, 43.9; v0 46.5, 42.1, 48.2,
43.0, 48.5, 43.1 (tiny, small, base).

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {
    "vmamba_v9_tiny": 0.2,
    "vmamba_v9_small": 0.3,
    "vmamba_v9_base": 0.6,
    "vmamba_v0_tiny": 0.2,
    "vmamba_v0_small": 0.2,
    "vmamba_v0_base": 0.2,
}


def get_config(argument: str = "vmamba_v9_tiny"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
