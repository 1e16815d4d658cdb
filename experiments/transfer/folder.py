# SPDX-License-Identifier: Apache-2.0
"""Fine-tune pretrained weights on your own images, at any size, each layer at its own rate.

    mambaout train --config experiments/transfer/folder.py --config.data.path=DIR
    mambaout train --config experiments/transfer/folder.py:runs/other --config.data.path=DIR

It takes the same DIR and the same words after the colon as experiments/folder.py. Unlike there,
each layer learns at 0.75 times the rate of the next one, the rate of the last layer is higher, and
the gradient is clipped. Without a colon it starts from mambaout_tiny.in1k.

Settings to consider:

    --config.data.image_size=384          ideally a multiple of 32; the crop stays that of the
                                          weights
    --config.optimizer.layer_decay=0.65   0.65 for few images, or for images similar to those that
                                          the weights were trained on; 0.8 for many, or others
    --config.optimizer.freeze=/backbone/  train the last layers alone; several patterns are written
                                          "('/stem/', '/stage_[01]_', '/downsample_1/')"
    --config.model.reset_head=False       keep the last layer, if the weights have the same classes

The peak rate is BEiT's for fine-tuning (Bao et al. 2022), 4e-3 for 1024 images, scaled to 64. None
of this is tuned here.

Hardware: a GPU for photographs at 224 pixels and more; a CPU is enough for a few hundred at 64.
Result: depends on the images; tested on photographs cut into patches, see
tests/train/test_transfer.py.
"""

import runpy
from pathlib import Path

_FOLDER = runpy.run_path(str(Path(__file__).parent.parent / "folder.py"))


def get_config(start: str = "mambaout_tiny.in1k"):
    config = _FOLDER["get_config"](start)
    if not config.model.pretrained:
        raise ValueError(
            f"{start} names a model, not weights; `mambaout models {start}` prints its published "
            "weights, and experiments/folder.py trains from scratch"
        )
    config.optimizer.layer_decay = 0.75
    config.optimizer.learning_rate = 2.5e-4  # for the last layer; the first of 20 has 1e-6
    config.optimizer.clip_norm = 1.0  # a new last layer begins with large gradients
    config.schedule.warmup_learning_rate = 0.0
    config.schedule.final_learning_rate = 1e-6
    return config
