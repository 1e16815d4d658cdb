# SPDX-License-Identifier: Apache-2.0
"""UperNet with HorNet-B on ADE20K, as its authors trained it (arXiv 2207.14284, and its code).

    mambaout train --config experiments/ade20k/hornet.py --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The backbone is
hornet_base_gf. Weights to start from are given as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/raoyongming/HorNet at ac9e210:
semantic_segmentation/configs/hornet/upernet_hornet_base_gf_512_160k_ade20k.py: rate 1e-4, weight
decay 0.05, decay of the rates by stage, clipping at 1, evaluation by crops of 512 every 341 pixels.
The MambaOut paper's other HorNets are not here.

What differs: there a stage is a layer, with a factor of 0.9 from one to the next, 0.9^13 at the
stem; here each block is one, and the stem has that factor. The code computes in float32, this in
bfloat16.

mIoU as published, at one scale and at many: 50.5, 50.9.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"hornet_base_gf": 0.5}


def get_config(model: str = "hornet_base_gf"):
    config = _MAMBAOUT["ade20k_recipe"](model, DROP_PATH)
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rules = ()  # the family's: kernels decay, nothing else
    config.optimizer.layer_decay = 0.9 ** (13 / 26)  # 25 blocks, and the heads
    config.segmentation.evaluation_mode = "slide"
    config.segmentation.slide_stride = 341
    return config
