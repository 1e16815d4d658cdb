# SPDX-License-Identifier: Apache-2.0
"""UperNet with Swin on ADE20K (arXiv 2103.14030), as in mmseg.

    mambaout train --config experiments/ade20k/swin.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/swin.py:swin_base_patch4_window7_224 ...

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: swin_tiny_patch4_window7_224 (the default), swin_small_patch4_window7_224 or
swin_base_patch4_window7_224. Weights to start from are given as --config.model.pretrained=FILE;
none are fetched.

Source: mmseg 1.2.2,
configs/swin/swin-{tiny,small,base}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py: the
rate 6e-5, drop path 0.3 for all.

What differs: mmseg computes in float32, this in bfloat16.

mIoU as published, at one scale and at many: tiny 44.4, 45.8, small 47.6, 49.5, base 48.1, 49.7.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {
    "swin_tiny_patch4_window7_224": 0.3,
    "swin_small_patch4_window7_224": 0.3,
    "swin_base_patch4_window7_224": 0.3,
}


def get_config(model: str = "swin_tiny_patch4_window7_224"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
