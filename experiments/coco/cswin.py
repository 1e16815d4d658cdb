# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with CSWin on COCO (arXiv 2107.00652): as Swin.

    mambaout train --config experiments/coco/cswin.py --config.data.path=DIR
    mambaout train --config experiments/coco/cswin.py:cswin_base,3x --config.data.path=DIR

DIR holds COCO 2017 as `mambaout prepare coco` writes it. The word after the colon is the backbone:
cswin_tiny (the default), cswin_small or cswin_base. After a comma follows the schedule, 1x or 3x,
as in mambaout.py here. Weights to start from are given as --config.model.pretrained=FILE; none are
fetched.

The authors' code, github.com/microsoft/CSWin-Transformer at f111ae2, has no detection; their paper
follows Swin's 1x schedule. Drop path is not published; it is that of segmentation/configs/cswin/
there.

What differs from Swin's file: this computes in bfloat16.

Box AP and mask AP as published, of 1x: tiny 46.7, 42.2, small 47.9, 43.2, base 48.7, 43.9.

Hardware: 16 images an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"cswin_tiny": 0.3, "cswin_small": 0.4, "cswin_base": 0.6}


def get_config(argument: str = "cswin_tiny"):
    return _MAMBAOUT["coco_recipe"](argument, DROP_PATH)
