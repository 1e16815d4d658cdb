# SPDX-License-Identifier: Apache-2.0
"""TransNeXt on ImageNet-1k, as its author trained it (arXiv 2311.17132, and its code): as DeiT.

    mambaout train --config experiments/imagenet/transnext.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/transnext.py:transnext_base --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: transnext_tiny (the default), transnext_small or transnext_base.

Sources, in classification/ of github.com/DaiShiResearch/TransNeXt at c8a9974:

    README.md   8 GPUs of 128 images
    configs/transnext_{tiny,small,base}.py
                drop path 0.25, 0.45, 0.6; clipping at 1; 300 epochs
    main.py     rate 1e-3, not scaled; warm-up 5 from 1e-6, to 1e-5; weight decay 0.05; no average;
                all augmentation
    engine.py   mixed precision
    datasets.py evaluation on the middle 224 of 256 pixels
    optimizer.py, transnext.py
                what decays: whatever has two axes or more, but for query embeddings, temperatures
                and biases of positions

What differs: the script repeats augmentation, so that an epoch shows a third of the images three
times each; the project cannot do that, and shows each once. The script's rates are an epoch late:
the first two epochs have the first rate. A cool-down of 10 epochs is set there and never reached.
The script computes in float16 with a scaled loss, this in bfloat16. Fewer devices make the same
update with --config.accumulate_steps=2, 4 or 8.

Top-1 accuracy as published, at 224 pixels: tiny 84.0, small 84.7, base 84.8.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("transnext_tiny", "transnext_small", "transnext_base")


def get_config(model: str = "transnext_tiny"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate_batch_size = 0
    config.optimizer.decay_rules = (
        (r"/position_bias/", False),
        (r"/learnable_(tokens|bias)$", True),
    )
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_epochs = 5.0
    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.per_epoch = True
    config.ema.decay = 0.0
    return config
