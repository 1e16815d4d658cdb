# SPDX-License-Identifier: Apache-2.0
"""UperNet with LocalVMamba on ADE20K (arXiv 2403.09338, and its code): as Swin.

    mambaout train --config experiments/ade20k/local_vmamba.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/local_vmamba.py:local_vmamba_small ...

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: local_vmamba_tiny (the default) or local_vmamba_small. Weights to start from
are given as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/hunto/LocalMamba at 75e5d1f:
segmentation/configs/local_mamba/upernet_local_vssm_*_8xb2-160k_ade20k-512x512.py, with all but drop
path from configs/swin/, a copy of mmseg's: the rate 6e-5.

What differs: this computes in bfloat16, the code in float16 with a scaled loss for Small.

mIoU as published, at one scale and at many: tiny 47.9, 49.1, small 50.0, 51.0.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"local_vmamba_tiny": 0.1, "local_vmamba_small": 0.2}


def get_config(model: str = "local_vmamba_tiny"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
