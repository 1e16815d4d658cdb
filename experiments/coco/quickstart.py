# SPDX-License-Identifier: Apache-2.0
"""MambaOut with Mask R-CNN learns to find digits in scenes, with their shapes, on a CPU.

    python experiments/coco/quickstart.py

Data: scenes of scikit-learn's digits on its photographs, 256 pixels and more a side; 1,000 to
train, 100 with other digits and other parts of the photographs to test. Nothing is downloaded. The
run is kept in runs/quickstart_detection, and the same command resumes it there. This file is also a
config:

    mambaout train --config experiments/coco/quickstart.py --config.seed=1
    mambaout train --config experiments/coco/quickstart.py:conv+ssm --workdir runs/ssm_detection

The second command adds an SSM after every convolution and changes nothing else.

Result: box AP 52.2, mask AP 47.8 after 1,000 updates. It takes 9 minutes and 20 seconds on two free
cores. The same answer for every image, each class's mean box, has box AP 0.0. conv+ssm: not run.
"""

import sys

from mambaout_jax.cli.main import main
from mambaout_jax.config import default_config


def get_config(token_mixer: str = "conv"):
    config = default_config()
    config.task = "detection"
    config.batch_size = 8
    config.model.name = "mambaout_micro"
    config.model.drop_path = 0.0
    with config.model.options.unlocked():
        config.model.options.token_mixer = token_mixer
        config.model.options.channels = 48  # of the pyramid and the heads; published: 256
        config.model.options.box_hidden = 256
        config.model.options.proposals = 100
        config.model.options.detections = 30

    config.data.source = "scenes"
    config.data.image_size = 256
    config.data.num_threads = 1

    config.detection.long_side = 320
    config.detection.max_instances = 8
    config.detection.sampled_regions = 32
    config.augment.flip_probability = 0.0  # a mirrored digit is not a digit

    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0

    config.schedule.total_epochs = 8.0
    config.schedule.warmup_epochs = 0.5
    config.schedule.warmup_learning_rate = 0.0
    config.schedule.final_learning_rate = 0.0

    config.evaluation.batch_size = 8
    config.evaluation.every_epochs = 8.0
    config.checkpoint.every_epochs = 4.0
    return config


if __name__ == "__main__":
    workdir = "runs/quickstart_detection"  # experiments/quickstart.py has runs/quickstart
    raise SystemExit(main(["train", "--config", __file__, "--workdir", workdir, *sys.argv[1:]]))
