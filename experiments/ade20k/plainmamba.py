# SPDX-License-Identifier: Apache-2.0
"""UperNet with PlainMamba on ADE20K (arXiv 2403.17695, and its code).

    mambaout train --config experiments/ade20k/plainmamba.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/plainmamba.py:plainmamba_l3 --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: plainmamba_l2 (the default) or plainmamba_l3. Weights to start from are given
as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/ChenhongyiYang/PlainMamba at 0975a1d:
downstream/mmsegmentation/plain_mamba_seg_configs/l*_upernet.py: the rate 6e-5, weight decay 0.01 of
all but norms, positions, A_log, D and the directions, drop path.

What differs, and more than elsewhere: there UperNet reads the maps of four blocks, all of stride
16, which is why it has 285 and 419 G multiply-adds; here a simple feature pyramid (arXiv
2203.16527) on the last map makes strides 4 to 32. The code computes in float32, this in bfloat16.

mIoU as published, at many scales: L2 46.8, L3 49.1.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"plainmamba_l2": 0.2, "plainmamba_l3": 0.3}
DECAY_RULES = (
    (r"^/(backbone|neck)/.*norm", False),
    (r"/(pos_embed|A_log|D|direction_B)$", False),
    (r"", True),
)


def get_config(model: str = "plainmamba_l2"):
    config = _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
    config.optimizer.decay_rules = DECAY_RULES
    return config
