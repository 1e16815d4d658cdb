# SPDX-License-Identifier: Apache-2.0
"""Train a MambaOut on your own images: one folder per class, JPEG, PNG or WebP.

    mambaout train --config experiments/folder.py --config.data.path=DIR
    mambaout train --config experiments/folder.py:mambaout_tiny --config.data.path=DIR

DIR holds train/ and val/ with one sub-folder per class, or the class sub-folders themselves: then
a fifth of every class is held out. The class names are the folders' names. The first command
trains `mambaout_femto`; any other name of `list_models()` comes after a colon.

The schedule is for a few thousand images; with fewer, raise --config.schedule.total_epochs, and
lower --config.batch_size to at most the number of training images.

Result: depends on the images; tested on photographs cut into patches, see tests/test_folder.py.
"""

from mambaout_jax.config import default_config


def get_config(model: str = "mambaout_femto"):
    config = default_config()
    config.batch_size = 64
    config.model.name = model
    config.data.source = "folder"
    config.data.num_threads = 8

    config.augment.scale = (0.25, 1.0)  # small data sets learn little from crops of a tenth
    config.augment.mixup_alpha = 0.2
    config.augment.erase_probability = 0.25
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99

    config.optimizer.learning_rate = 1e-3
    config.schedule.total_epochs = 50.0
    config.schedule.warmup_epochs = 5.0
    config.evaluation.batch_size = 64
    return config
