# SPDX-License-Identifier: Apache-2.0
"""UperNet with CSWin on ADE20K, as its authors trained it (arXiv 2107.00652): as Swin.

    mambaout train --config experiments/ade20k/cswin.py --config.data.path=DIR
    mambaout train --config experiments/ade20k/cswin.py:cswin_base --config.data.path=DIR

DIR holds ADE20K's scene parsing data as `mambaout prepare ade20k` writes it. The word after the
colon is the backbone: cswin_tiny (the default), cswin_small or cswin_base. Weights to start from
are given as --config.model.pretrained=FILE; none are fetched.

Source, in github.com/microsoft/CSWin-Transformer at f111ae2:
segmentation/configs/cswin/upernet_cswin_*.py: the rate 6e-5, weight decay 0.01, drop path.

What differs: the code computes in float32, this in bfloat16.

mIoU as published, at one scale and at many: tiny 49.3, 50.7, small 50.4, 51.5, base 51.1, 52.2.

Hardware: 16 crops an update, on 1, 2, 4, 8 or 16 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_MAMBAOUT = runpy.run_path(str(Path(__file__).parent / "mambaout.py"))

DROP_PATH = {"cswin_tiny": 0.3, "cswin_small": 0.4, "cswin_base": 0.6}


def get_config(model: str = "cswin_tiny"):
    return _MAMBAOUT["ade20k_recipe"](model, DROP_PATH, 6e-5)
