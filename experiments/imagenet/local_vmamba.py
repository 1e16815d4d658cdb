# SPDX-License-Identifier: Apache-2.0
"""LocalVMamba on ImageNet-1k, as far as its authors' code tells (arXiv 2403.09338).

    mambaout train --config experiments/imagenet/local_vmamba.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/local_vmamba.py:local_vmamba_small ...

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: local_vmamba_tiny (the default) or local_vmamba_small.

The recipe and its sources are those of local_vim.py beside this file, but for two values, in
github.com/hunto/LocalMamba at 75e5d1f:

    README.md                                   mixed precision for these models; bfloat16 here,
                                                float16 there
    classification/lib/models/local_vmamba.py   drop path 0.2, the default of both models; the 0.1
                                                of config.yaml replaces it there unless the command
                                                line says otherwise, and that is not published

The README names two options of large models without saying which were trained with them:
--config.optimizer.clip_norm=1.0 and --config.ema.decay=0.9999.

Top-1 accuracy as published, at 224 pixels: tiny 82.7, small 83.7.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_FOLDER = Path(__file__).parent
_VMAMBA = runpy.run_path(str(_FOLDER / "vmamba.py"))
_LOCAL_VIM = runpy.run_path(str(_FOLDER / "local_vim.py"))

MODELS = ("local_vmamba_tiny", "local_vmamba_small")


def get_config(model: str = "local_vmamba_tiny"):
    config = _LOCAL_VIM["local_mamba_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.optimizer.decay_rules = _VMAMBA["DECAY_RULES"]
    return config
