# SPDX-License-Identifier: Apache-2.0
"""UperNet with UniFormer-B on ADE20K, as its authors trained it (arXiv 2201.09450): as Swin.

    mambaout train --config experiments/ade20k/uniformer.py --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The backbone is
uniformer_base. Weights to start from are given as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/Sense-X/UniFormer at 52a0415:
semantic_segmentation/exp/upernet_global_base/config.py: the rate 6e-5, weight decay 0.01, drop
path.

What differs: the MambaOut paper lists the file beside it, upernet_hybrid_base, whose third stage
attends within windows of 32 (1,106 G multiply-adds); here, as in the global file (1,227 G), within
the whole map. The code computes in float32, this in bfloat16.

mIoU as published, at one scale and at many: within windows 49.5, 50.7; within the map 50.0, 50.8.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"uniformer_base": 0.4}


def get_config(model: str = "uniformer_base"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
