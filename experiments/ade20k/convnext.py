# SPDX-License-Identifier: Apache-2.0
"""UperNet with ConvNeXt on ADE20K, as its authors trained it (arXiv 2201.03545, and its code).

    mambaout train --config experiments/ade20k/convnext.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/convnext.py:convnext_base --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: convnext_tiny (the default), convnext_small or convnext_base. Weights to
start from are given as --config.model.pretrained=FILE; none are fetched.

Sources, in github.com/facebookresearch/ConvNeXt at 048efce, semantic_segmentation/:

    configs/convnext/upernet_convnext_*_512_160k_ade20k_ss.py  rate 1e-4, weight decay 0.05, decay
                                                               of the rates by stage, drop path,
                                                               evaluation by crops of 512 every 341
                                                               pixels
    mmcv_custom/layer_decay_optimizer_constructor.py           the rates of the stages; kernels
                                                               alone decay

What differs: there a stage is a layer, with a factor of 0.9 from one to the next; the last one is
three such steps below the heads with Tiny and nine with the others, so that the stem learns at
0.9^7 or 0.9^13 of the rate. Here each block is a layer, and the stem has that factor. This computes
in bfloat16, the code in float16 with a scaled loss.

mIoU as published, at one scale and at many: tiny 46.0, 46.7, small 48.7, 49.6, base 49.1, 49.9.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"convnext_tiny": 0.4, "convnext_small": 0.3, "convnext_base": 0.4}
# Of the stem over that of the heads, and layers from one to the other: blocks, and the heads.
STEM_RATE = {
    "convnext_tiny": (0.9**7, 19),
    "convnext_small": (0.9**13, 37),
    "convnext_base": (0.9**13, 37),
}


def get_config(model: str = "convnext_tiny"):
    config = _MAMBAOUT["ade20k_recipe"](model, DROP_PATH)
    rate, layers = STEM_RATE[model]
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rules = ()  # the family's: kernels decay, nothing else
    config.optimizer.layer_decay = rate ** (1 / layers)
    config.segmentation.evaluation_mode = "slide"
    config.segmentation.slide_stride = 341
    return config
