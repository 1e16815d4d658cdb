# SPDX-License-Identifier: Apache-2.0
"""UperNet with ConvFormer and CAFormer on ADE20K (arXiv 2210.13452).

    mambaout train --config experiments/ade20k/metaformer.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/metaformer.py:caformer_m36 --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: convformer_s18 (the default), convformer_s36, convformer_m36, caformer_s18,
caformer_s36 or caformer_m36. It starts from its published ImageNet weights.

The authors' code, github.com/sail-sg/metaformer at 64c534a, has no segmentation, and no config is
published: this is MambaOut's recipe, by the same authors, with the drop path of pre-training.

mIoU as published, at one scale and at many: ConvFormer 47.5, 48.6, 49.6, 50.7, 50.4, 51.3; CAFormer
48.1, 48.9, 50.6, 50.8, 51.7, 51.7 (S18, S36, M36).

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {
    "convformer_s18": None,
    "convformer_s36": None,
    "convformer_m36": None,
    "caformer_s18": None,
    "caformer_s36": None,
    "caformer_m36": None,
}


def get_config(model: str = "convformer_s18"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH)
