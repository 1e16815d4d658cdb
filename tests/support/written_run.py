# SPDX-License-Identifier: Apache-2.0
"""The folder of a run that was never trained: random numbers where weights would be."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.config_file import save_config
from mambaout_jax.models import model_options
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.tasks import find_task
from mambaout_jax.train.state import TrainState


def write_run(folder, config, class_names):
    """Writes config.json, classes.json and a checkpoint; returns the model and its variables."""
    task = find_task(config.task)(config, class_names)
    model = task.build(config.model.name, **model_options(config))
    shape = (1, 64, 64, config.data.channels)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(0)

    def numbers(path, leaf):
        positive = path[-1].key in ("scale", "var", "gamma")
        return (0.05 * rng.standard_normal(leaf.shape) + positive).astype(np.float32)

    variables = jax.tree.map_with_path(numbers, shapes)
    folder.mkdir()
    save_config(config, folder / "config.json")
    (folder / "classes.json").write_text(json.dumps(list(class_names)))
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], collections, (), None)
    with Checkpointer(folder / "checkpoints", keep=1) as checkpointer:
        checkpointer.save(1, jax.tree.map(jnp.asarray, state), {"data": {}})
    return model, variables
