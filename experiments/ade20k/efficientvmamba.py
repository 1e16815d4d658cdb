# SPDX-License-Identifier: Apache-2.0
"""UperNet with EfficientVMamba-B on ADE20K (arXiv 2403.09977): as Swin.

    mambaout train --config experiments/ade20k/efficientvmamba.py --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The backbone is
efficientvmamba_base. Weights to start from are given as --config.model.pretrained=FILE; none are
fetched.

The authors' code, github.com/TerryPei/EfficientVMamba at 0bc5ee2, has no segmentation: this is
Swin's, mmseg 1.2.2's
configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py, with its drop
path, as VMamba's files inherit it.

What differs from that file: this computes in bfloat16.

mIoU as published, at one scale and at many: 46.5, 47.3.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"efficientvmamba_base": 0.3}


def get_config(model: str = "efficientvmamba_base"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
