# SPDX-License-Identifier: Apache-2.0
"""PlainMamba on ImageNet-1k, as its authors trained it (arXiv 2403.17695, and its code): as Swin.

    mambaout train --config experiments/imagenet/plainmamba.py --config.data.path=DIR
    mambaout train --config experiments/imagenet/plainmamba.py:plainmamba_l3 --config.data.path=DIR

DIR holds ImageNet-1k as `mambaout prepare imagenet` writes it, or in class folders. The word after
the colon is the model: plainmamba_l1 (the default), plainmamba_l2 or plainmamba_l3.

Sources, in github.com/ChenhongyiYang/PlainMamba at 0975a1d:

    plain_mamba_configs/plain_mamba_l{1,2,3}_in1k_300e.py
                         256 images a GPU; 8 GPUs, 4 for L3; the rate is 5e-4 for 512 images; drop
                         path 0.2, 0.2, 0.4; L1: warm-up 15, clipping at 5, mixed precision, no
                         average; L2, L3: warm-up 20, clipping at 1, the average's decay 0.9999
    configs/_base_/schedules/imagenet_bs1024_adamw_swin.py
                         300 epochs, weight decay 0.05, rates from a thousandth, to a hundredth
    configs/_base_/datasets/imagenet_bs64_swin_224_lmdb.py
                         images: bicubic, RandAugment, erasing before mixing, evaluation on the
                         middle 224 of 256 pixels
    tools/train.py       the rate follows the number of GPUs there are

What differs: the rates of the warm-up are multiplied with those of the cosine there, which begins
at the first update in both; here they lead to the peak, at most 1.1 % above. The average's hook has
no decay from epoch 250 on (mmcls/plain_mamba_dev/hooks/ema_checkpoint.py), with which it cannot
run; here the decay stays. L1 computes in bfloat16 instead of float16 with a scaled loss. Batch
norms see the whole micro-batch, there the images of one GPU; for this reason fewer devices with
--config.accumulate_steps=2, 4 or, but for L3, 8 make nearly the same update, and not quite.

Top-1 accuracy as published, at 224 pixels: L1 77.9, L2 81.6, L3 82.3.

Hardware: 8 GPUs or TPU chips.
Result: not run here.
"""

import runpy
from pathlib import Path

_VMAMBA = runpy.run_path(str(Path(__file__).parent / "vmamba.py"))

MODELS = ("plainmamba_l1", "plainmamba_l2", "plainmamba_l3")


def get_config(model: str = "plainmamba_l1"):
    config = _VMAMBA["swin_recipe"](model, MODELS)
    config.batch_size = 1024 if model == "plainmamba_l3" else 2048
    peak = 1e-3 * config.batch_size / 1024
    config.augment.mix_group_size = 256

    config.schedule.warmup_prefix = False  # the cosine runs from the start, behind the warm-up
    config.schedule.warmup_learning_rate = 1e-3 * peak
    config.schedule.final_learning_rate = 1e-2 * peak
    if model == "plainmamba_l1":
        config.model.dtype = "bfloat16"
        config.schedule.warmup_epochs = 15.0
        config.ema.decay = 0.0
    else:
        config.optimizer.clip_norm = 1.0
    return config
