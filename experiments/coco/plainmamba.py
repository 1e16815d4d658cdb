# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with PlainMamba on COCO (arXiv 2403.17695, and its code).

    mambaout train --config experiments/coco/plainmamba.py --config.data.path=DIR
    mambaout train --config experiments/coco/plainmamba.py:plainmamba_l2,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
plainmamba_l1 (the default) or plainmamba_l2. After a comma follows the schedule, 1x or 3x, as in
mambaout.py here. Weights to start from are given as --config.model.pretrained=FILE; none are
fetched.

Sources, in github.com/ChenhongyiYang/PlainMamba at 0975a1d:

    template/maskrcnn_1x.py     rate, weight decay and what does not decay: norms, biases,
                                positions, A_log, D, the directions
    maskrcnn/l*_maskrcnn_1x.py  drop path

Both are in downstream/mmdetection/plain_mamba_det_configs/.

What differs, and more than elsewhere: the published maps of four resolutions come from a
ViT-Adapter, a network beside the backbone (hence 31 and 53 M parameters and 388 and 542 G
multiply-adds); here from a simple feature pyramid (arXiv 2203.16527) on the last map. There the
pyramid has batch norms, and images without objects stay in the training set; neither is so here.
The code computes in float32, this in bfloat16.

Box AP and mask AP as published, of 1x: L1 44.1, 39.1, L2 46.0, 40.6.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"plainmamba_l1": 0.1, "plainmamba_l2": 0.2}
DECAY_RULES = (
    (r"^/(backbone|neck)/.*norm", False),
    (r"/(bias|pos_embed|A_log|D|direction_B)$", False),
    (r"", True),
)


def get_config(argument: str = "plainmamba_l1"):
    config = _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
    config.optimizer.decay_rules = DECAY_RULES
    return config
