# SPDX-License-Identifier: Apache-2.0
"""Variables of models, quicker than by their own initialisation."""

import jax
import numpy as np


def randomised(model, images, seed=0):
    """Variables of ordinary sizes, so that no branch is near zero; much quicker than `init`."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        if path[-1].key == "var":  # of a BatchNorm
            return 1 + 0.3 * np.abs(noise)
        return 0.3 * noise + (path[-1].key in ("scale", "gamma"))

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(value, shapes)
