# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with ConvNeXt on COCO (arXiv 2201.03545, and its code).

    mambaout train --config experiments/coco/convnext.py --config.data.path=DIR
    mambaout train --config experiments/coco/convnext.py:convnext_base,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
convnext_tiny (the default), convnext_small or convnext_base. After a comma follows the schedule, 1x
or 3x, as in mambaout.py here. Weights to start from are given as --config.model.pretrained=FILE;
none are fetched.

The authors publish Mask R-CNN with Tiny, 3x, and Cascade Mask R-CNN with all, 3x; the MambaOut
paper's 1x figures come from papers without a config. Taken from the 3x files, in
github.com/facebookresearch/ConvNeXt at 048efce, object_detection/configs/convnext/:

    mask_rcnn_convnext_tiny_*.py          rate 1e-4, weight decay 0.05 of kernels alone, decay of
                                          the rates by layer, drop path of Tiny
    cascade_mask_rcnn_convnext_*_in1k.py  drop path of Small and Base

What differs: there a layer is up to three blocks of the third stage, or a whole other stage, with a
factor of 0.95 from one to the next, 0.95^7 at the stem of Tiny; here each block is a layer, and the
stem of every size has that factor. This computes in bfloat16, the code in float16 with a scaled
loss.

Box AP and mask AP as published by others, of 1x: tiny 44.2, 40.1, small 45.4, 41.8, base 47.0,
42.7.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"convnext_tiny": 0.4, "convnext_small": 0.6, "convnext_base": 0.7}
LAYERS = {"convnext_tiny": 19, "convnext_small": 37, "convnext_base": 37}  # above the stem


def get_config(argument: str = "convnext_tiny"):
    config = _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
    config.optimizer.decay_rules = ()  # the family's: kernels decay, nothing else
    config.optimizer.layer_decay = 0.95 ** (7 / LAYERS[config.model.name])
    return config
