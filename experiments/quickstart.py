# SPDX-License-Identifier: Apache-2.0
"""MambaOut learns to read handwritten digits, in under a minute on a laptop's CPU.

    python experiments/quickstart.py

Data: scikit-learn's digits, 1,797 real scans of 8x8 pixels, upscaled to 32; 1,438 to train, 359 to
test. Nothing is downloaded. The run is kept in runs/quickstart, and the same command resumes it
there. This file is also a config:

    mambaout train --config experiments/quickstart.py --config.seed=1
    mambaout train --config experiments/quickstart.py:conv+ssm --workdir runs/ssm
    mambaout compare --config experiments/quickstart.py --mixers conv+ssm,conv

The second command adds an SSM after every convolution and changes nothing else: the paper's
question, asked about digits. The third asks it with three seeds, at equal cost.

Result: see README.md.
"""

import sys

from mambaout_jax.cli.main import main
from mambaout_jax.config import default_config


def get_config(token_mixer: str = "conv"):
    config = default_config()
    config.batch_size = 64
    config.model.name = "mambaout_micro"
    config.model.drop_path = 0.05
    with config.model.options.unlocked():
        config.model.options.token_mixer = token_mixer

    config.data.source = "digits"
    config.data.image_size = 32
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.num_threads = 1

    config.augment.crop = "shift"
    config.augment.shift_pixels = 4
    config.augment.flip_probability = 0.0  # a mirrored digit is not a digit
    config.augment.erase_probability = 0.25

    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.loss.label_smoothing = 0.1

    config.schedule.total_epochs = 30.0
    config.schedule.warmup_epochs = 3.0
    config.schedule.warmup_learning_rate = 0.0
    config.schedule.final_learning_rate = 0.0

    config.evaluation.batch_size = 360
    config.evaluation.every_epochs = 5.0
    config.checkpoint.every_epochs = 5.0
    return config


if __name__ == "__main__":
    raise SystemExit(main(["train", "--config", __file__, *sys.argv[1:]]))
