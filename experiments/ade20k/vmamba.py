# SPDX-License-Identifier: Apache-2.0
"""UperNet with VMamba on ADE20K (arXiv 2401.10166, and its code): as Swin, one other drop path.

    mambaout train --config experiments/ade20k/vmamba.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/vmamba.py:vmamba_v0_base --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: vmamba_v9_tiny (the default), vmamba_v9_small, vmamba_v9_base,
vmamba_v0_tiny, vmamba_v0_small or vmamba_v0_base. Weights to start from are given as
--config.model.pretrained=FILE; none are fetched.

Sources, in github.com/MzeroMiko/VMamba at 2ed52ea:

    segmentation/configs/vssm1/  drop path of v9, in upernet_vssm_4xb4-160k_ade20k-512x512_*.py
    segmentation/configs/vssm/   v0: they name no drop path and inherit 0.3
    segmentation/configs/swin/   all else, a copy of mmseg's: the rate 6e-5

What differs: norms of V9's stem and downsampling decay there, as their names, numbers in a
sequence, have no "norm". This computes in bfloat16, the published runs in float16 or float32.

mIoU as published, at one scale and at many: v9 48.3, 48.6, 50.6, 51.2, 51.0, 51.6; v0 47.3, 48.3,
49.5, 50.5, 50.0, 51.3 (tiny, small, base).

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {
    "vmamba_v9_tiny": 0.2,
    "vmamba_v9_small": 0.3,
    "vmamba_v9_base": 0.6,
    "vmamba_v0_tiny": 0.3,
    "vmamba_v0_small": 0.3,
    "vmamba_v0_base": 0.3,
}


def get_config(model: str = "vmamba_v9_tiny"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
