# SPDX-License-Identifier: Apache-2.0
"""Train a model on your own images, or fine-tune one: a folder per class, JPEG, PNG or WebP.

    mambaout train --config experiments/folder.py --config.data.path=DIR
    mambaout train --config experiments/folder.py:mambaout_tiny --config.data.path=DIR
    mambaout train --config experiments/folder.py:mambaout_tiny.in1k --config.data.path=DIR
    mambaout train --config experiments/folder.py:runs/folder --config.data.path=DIR

DIR holds train/ and val/ with one sub-folder per class, or the class sub-folders themselves: then
a fifth of every class is held out. The class names are the folders' names.

After a colon stands where to start. The name of a model trains it from scratch; the first command
takes `mambaout_femto`. Weights are fine-tuned, all layers, the last one afresh: published ones by
a name that `mambaout models` prints, a weight file, a training run's folder, a hub repository.

The schedules are for a few thousand images; with fewer, raise --config.schedule.total_epochs, and
lower --config.batch_size to at most the number of training images.

Hardware: a GPU for photographs at 224 pixels; a CPU will do for a few hundred at 64.
Result: depends on the images; tested on photographs cut into patches, see
tests/train/test_finetune.py.
"""

from mambaout_jax.config import default_config
from mambaout_jax.models import list_models
from mambaout_jax.weights.locate import locate


def get_config(start: str = "mambaout_femto"):
    config = default_config()
    config.batch_size = 64
    config.data.source = "folder"
    config.data.num_threads = 8
    config.augment.scale = (0.25, 1.0)  # small data sets learn little from crops of a tenth
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.9  # a run may have few updates, and an average must not lag behind it
    config.evaluation.batch_size = 64
    if start in list_models():
        return from_scratch(config, start)
    return fine_tuning(config, start)


def from_scratch(config, model: str):
    config.model.name = model
    config.augment.mixup_alpha = 0.2
    config.augment.erase_probability = 0.25
    config.optimizer.learning_rate = 1e-3
    config.schedule.total_epochs = 50.0
    config.schedule.warmup_epochs = 5.0
    return config


def fine_tuning(config, weights: str):
    found = locate(weights)
    config.model.name = found.name
    config.model.pretrained = weights

    how = found.preprocessing(None)  # images are prepared as the weights know them
    config.data.image_size = how.image_size
    config.data.crop_fraction = how.crop_fraction
    config.data.crop_mode = how.crop_mode
    config.data.interpolation = how.interpolation
    config.data.channels = len(how.mean)
    config.data.mean, config.data.std = how.mean, how.std

    config.optimizer.learning_rate = 1e-4  # a tenth: the weights are to be kept, mostly
    config.schedule.total_epochs = 15.0
    config.schedule.warmup_epochs = 1.0
    return config
