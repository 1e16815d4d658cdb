# SPDX-License-Identifier: Apache-2.0
"""MambaOut with UperNet learns to find digits in scenes, pixel by pixel, in minutes on a CPU.

    python experiments/ade20k/quickstart.py

Data: scenes of scikit-learn's digits on its photographs, at 160 x 200 pixels; 1,000 to train, 100
with other digits and other parts of the photographs to test. Nothing is downloaded. Each pixel is
of one of eleven classes: a digit, or none. Most are of none: to say so everywhere makes a mean IoU
of 7.5. For some 800 updates the model tells digits from photographs and not yet from each other.
The run is kept in runs/quickstart_segmentation, and the same command resumes it there. This file is
also a config:

    mambaout train --config experiments/ade20k/quickstart.py --config.seed=1
    mambaout train --config experiments/ade20k/quickstart.py:conv+ssm --workdir runs/ssm

The second command adds an SSM after every convolution and changes nothing else.

Hardware: a CPU; 21 minutes on two cores busy with other work, 22 of one core's time.
Result: mIoU 58.2, mAcc 72.5, aAcc 94.4 with seed 0; conv+ssm not run.
"""

import sys

from mambaout_jax.cli.main import main
from mambaout_jax.config import default_config


def get_config(token_mixer: str = "conv"):
    config = default_config()
    config.task = "segmentation"
    config.batch_size = 8
    config.model.name = "mambaout_micro"
    config.model.drop_path = 0.0
    with config.model.options.unlocked():
        config.model.options.token_mixer = token_mixer
        config.model.options.channels = 32  # of UperNet; the paper's has 512
        config.model.options.auxiliary_channels = 32
        config.model.options.dropout = 0.0

    config.data.source = "scenes"
    config.data.image_size = 160
    config.data.num_threads = 1

    config.segmentation.scale = (0.8, 1.25)
    config.segmentation.max_class_share = 1.0  # most pixels are no digit
    config.segmentation.photometric = False
    config.augment.flip_probability = 0.0  # a mirrored digit is not a digit

    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.b2 = 0.98

    config.schedule.total_epochs = 40.0
    config.schedule.warmup_epochs = 2.0
    config.schedule.warmup_learning_rate = 0.0
    config.schedule.final_learning_rate = 0.0

    config.evaluation.batch_size = 16
    config.evaluation.every_epochs = 4.0
    config.checkpoint.every_epochs = 4.0
    return config


if __name__ == "__main__":
    workdir = "runs/quickstart_segmentation"  # experiments/quickstart.py has runs/quickstart
    raise SystemExit(main(["train", "--config", __file__, "--workdir", workdir, *sys.argv[1:]]))
