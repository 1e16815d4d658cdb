# SPDX-License-Identifier: Apache-2.0
"""UperNet with Focal Transformers on ADE20K (arXiv 2107.00641): as Swin.

    mambaout train --config experiments/ade20k/focal.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/focal.py:focal_small --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: focal_tiny (the default) or focal_small. Weights to start from are given as
--config.model.pretrained=FILE; none are fetched.

The authors' code, github.com/microsoft/Focal-Transformer at 57bb303, says in
segmentation/get_started.md that it follows Swin's, and has no config: this is mmseg 1.2.2's
configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py with the drop
path of pre-training.

What differs from that file: this computes in bfloat16.

mIoU as published, at one scale and at many: tiny 45.8, 47.0, small 48.0, 50.0.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"focal_tiny": None, "focal_small": None}


def get_config(model: str = "focal_tiny"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
