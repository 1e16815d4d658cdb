# SPDX-License-Identifier: Apache-2.0
"""A run whose state is worth sharding; as a program some such runs, by several processes."""

import sys

import jax
from support import tiny_run

from mambaout_jax.train.loop import train

STEPS = 6


def get_config(fsdp):
    """Two checkpoints, a line of metrics for every update, one batch of evaluation at the end."""
    config = tiny_run.get_config()
    config.model.options.depths, config.model.options.dims = (1,), (96,)
    config.optimizer.learning_rate = 1e-3  # higher ones let rounding grow
    config.schedule.total_steps = config.evaluation.every_steps = STEPS
    config.schedule.warmup_steps = 2
    config.checkpoint.every_steps = STEPS // 2
    config.log.every_steps = 1
    config.evaluation.batch_size = 384
    config.mesh.fsdp = fsdp
    return config


if __name__ == "__main__":
    address, count, index, *runs = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    for run in runs:  # WORKDIR:FSDP
        workdir, _, fsdp = run.rpartition(":")
        train(get_config(int(fsdp)), workdir)
