# SPDX-License-Identifier: Apache-2.0
"""UniFormer on ImageNet-1k, as its authors trained it (arXiv 2201.09450, and its code): as DeiT.

    mambaout train --config experiments/imagenet/uniformer.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/uniformer.py:uniformer_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: uniformer_base_ls (the default) or uniformer_base.

Sources, in image_classification/ of github.com/Sense-X/UniFormer at 52a0415:

    exp/uniformer_base_ls/run.sh, exp/uniformer_base/run.sh
                8 GPUs of 128 images; rate 4e-4, drop path 0.3
    main.py     the rate is for 512 images; 300 epochs, warm-up 5 from 1e-6, to 1e-5; weight decay
                0.05; the average's decay 0.99996; no clipping; all augmentation
    engine.py   mixed precision
    datasets.py evaluation on the middle 224 of 256 pixels

What decays is timm's choice: whatever has two axes or more.

What differs: the script repeats augmentation, so that an epoch shows a third of the images three
times each; the project cannot do that, and shows each once. The script's rates are an epoch late:
the first two epochs have the first rate. A cool-down of 10 epochs is set there and never reached.
The script computes in float16 with a scaled loss, this in bfloat16. Batch norms see the whole
micro-batch, there the images of one GPU; for this reason fewer devices with
--config.accumulate_steps=2, 4 or 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: 83.9 with layer scale, 83.8 without.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("uniformer_base_ls", "uniformer_base")


def get_config(model: str = "uniformer_base_ls"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 4e-4
    config.optimizer.learning_rate_batch_size = 512
    config.optimizer.clip_norm = 0.0
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.99996
    return config
