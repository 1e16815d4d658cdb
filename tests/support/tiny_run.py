# SPDX-License-Identifier: Apache-2.0
"""A run of seconds, as a config file: what tests of whole runs train, in process or by command."""

from mambaout_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 32
    config.model.name = "mambaout_micro"
    with config.model.options.unlocked():
        config.model.options.depths = (1, 1)
        config.model.options.dims = (8, 16)

    config.data.source = "digits"
    config.data.image_size = 16
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.num_threads = 1

    config.augment.crop = "shift"
    config.augment.shift_pixels = 1
    config.augment.flip_probability = 0.0

    config.optimizer.learning_rate = 1e-2
    config.schedule.total_steps = 30
    config.schedule.warmup_steps = 5
    config.ema.decay = 0.9

    # No two of them fall together, but at the end.
    config.log.every_steps = 8
    config.evaluation.every_steps = 13
    config.checkpoint.every_steps = 11
    config.evaluation.batch_size = 64  # does not divide the 359 examples
    config.checkpoint.keep = 10
    return config
