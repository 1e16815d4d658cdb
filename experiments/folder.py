# SPDX-License-Identifier: Apache-2.0
"""Train or fine-tune a model on your own images (JPEG, PNG, WebP), in one folder per class.

    mambaout train --config experiments/folder.py --config.data.path=DIR
    mambaout train --config experiments/folder.py:mambaout_tiny --config.data.path=DIR
    mambaout train --config experiments/folder.py:mambaout_tiny.in1k --config.data.path=DIR
    mambaout train --config experiments/folder.py:runs/folder --config.data.path=DIR

DIR holds train/ and val/ with one sub-folder per class, or the class sub-folders themselves; in
that case a fifth of every class is held out. The class names are the folders' names.

The word after the colon says what to start from. The name of a model trains it from scratch; the
first command uses `mambaout_femto`. Weights are fine-tuned in all layers, with a new last layer:
they are a name that `mambaout models` prints, a weight file, the folder of a training run, or a hub
repository.

The schedules are for a few thousand images; with fewer, raise --config.schedule.total_epochs, and
lower --config.batch_size to at most the number of training images.

Hardware: a GPU for photographs at 224 pixels; a CPU is enough for a few hundred at 64.
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
    config.augment.scale = (0.25, 1.0)  # with little data, crops of a tenth teach little
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.9  # short, so that the average keeps up with a run of few updates
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

    found.preprocessing(None).write_to(config.data)  # images as the weights were trained on

    config.optimizer.learning_rate = 1e-4  # a tenth of that from scratch, to stay near the weights
    config.schedule.total_epochs = 15.0
    config.schedule.warmup_epochs = 1.0
    return config
