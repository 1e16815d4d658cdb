# SPDX-License-Identifier: Apache-2.0
"""Files of small weights in PyTorch's names, and how variables are compared."""

import jax
import numpy as np
import safetensors.numpy
from goldens.fill import value_of
from support.places import GOLDENS

from mambaout_jax.models import create_model
from mambaout_jax.weights.convert import model_variables, to_torch

FILES = GOLDENS / "torch_files"
MODEL = {"depths": (1, 1), "dims": (8, 16)}


def random_variables():
    """Of a mambaout_tiny with `MODEL` and three classes."""
    rng = np.random.default_rng(0)
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, images))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def write_torch_names(path, variables, naming="timm"):
    state = to_torch("mambaout_tiny", variables, naming=naming, num_classes=3, **MODEL)
    safetensors.numpy.save_file(state, path)
    return path


def torch_values(seed=0):
    """What tests/goldens/torch_files/make.py has put into its state dicts, as variables."""
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    state = to_torch("mambaout_tiny", empty, naming="official", num_classes=3, **MODEL)
    return {name: value_of(name, value.shape, seed) for name, value in state.items()}
