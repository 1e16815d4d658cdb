# SPDX-License-Identifier: Apache-2.0
"""UperNet with SG-Former on ADE20K (arXiv 2308.12216): as Swin.

    mambaout train --config experiments/ade20k/sg_former.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/sg_former.py:sgformer_m --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: sgformer_s (the default) or sgformer_m. Weights to start from are given as
--config.model.pretrained=FILE; none are fetched.

The authors' code, github.com/OliverRensu/SG-Former at b982803, has no segmentation, and no config
is published: this is Swin's, mmseg 1.2.2's
configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py, with the drop
path of pre-training.

What differs from that file: this computes in bfloat16.

mIoU as published, at one scale and at many: small 49.9, 51.5, medium 51.2, 52.1.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"sgformer_s": None, "sgformer_m": None}


def get_config(model: str = "sgformer_s"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
