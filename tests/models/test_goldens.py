# SPDX-License-Identifier: Apache-2.0
"""Every model against what its public PyTorch implementation computed (see goldens/fill.py).

A golden is `goldens/<family>/<model>.npz`; a family's smallest runs by default where its mechanism
(statistics, relative positions, a scan's routes, …) is one that no other default golden has.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from support.goldens import MODELS, load, model_of

from mambaout_jax.backbone import subtree
from mambaout_jax.models import create_model, list_models
from mambaout_jax.weights.convert import from_torch, to_torch

DEFAULT = {
    "mambaout/test_mambaout",
    "deit/deit_tiny_patch16_224",
    "fasternet/fasternet_t1",
    "swin/swin_tiny_patch4_window7_224",
    "vmamba/vmamba_v9_tiny",
}
TOLERANCE = 5e-5  # of the standard deviation of what is compared


def golden(path):
    name = f"{path.parent.name}/{path.stem}"
    return pytest.param(path, id=name, marks=() if name in DEFAULT else pytest.mark.goldens)


PATHS = [golden(path) for path in MODELS]


def stages_of(backbone, variables, images, features, labels):
    """What the reference calls its stages: label to our array, channels last."""
    if features.token is None:
        stages = {}
        for i, stage in enumerate(features.maps):
            names = (f"stages_{i}", f"layers_{i}_blocks", f"layers_{i}")
            stages[next(name for name in names if name in labels)] = stage
        return stages
    stages = {}  # a transformer without stages: after single blocks, the class token first
    for depth in (1, backbone.depth // 2, backbone.depth):
        features = backbone.clone(depth=depth).apply(variables, images, method="features")
        patches = features.maps[-1].reshape(len(images), -1, backbone.dim)
        stages[f"blocks_{depth - 1}"] = jnp.concatenate((features.token[:, None], patches), axis=1)
    return stages


def in_layout(stage, shape):
    """Our array in the layout of the reference, which may have channels first."""
    stage = np.asarray(stage)
    return stage if list(stage.shape) == shape else np.moveaxis(stage, -1, 1)


@pytest.mark.parametrize("path", PATHS)
def test_outputs_and_stages_equal_the_reference(path):
    arrays, meta, state_dict = load(path)
    name = model_of(path)
    variables = from_torch(name, state_dict)
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    model = create_model(name)

    @jax.jit
    def forward(variables, images):
        inside = subtree(variables, "backbone")
        features = model.backbone.apply(inside, images, method="features")
        stages = stages_of(model.backbone, inside, images, features, meta["stages"])
        return model.head.apply(subtree(variables, "head"), features), stages

    logits, stages = forward(variables, images)
    error = np.abs(logits - arrays["output"]).max() / arrays["output"].std()
    assert error <= TOLERANCE
    assert stages
    for label, stage in stages.items():
        summary = meta["stages"][label]
        stage = in_layout(stage, summary["shape"])
        assert list(stage.shape) == summary["shape"]
        assert abs(float(stage.mean()) - summary["mean"]) <= TOLERANCE * summary["std"]
        assert abs(float(stage.std()) / summary["std"] - 1) <= TOLERANCE
        first = stage.ravel()[:64]
        assert np.abs(first - arrays[f"stage_{label}"]).max() <= TOLERANCE * summary["std"]


@pytest.mark.parametrize("path", PATHS)
def test_conversion_there_and_back_is_bit_exact(path):
    _, meta, state_dict = load(path)
    name = model_of(path)
    variables = from_torch(name, state_dict)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == meta["n_params"]
    naming = "official" if path.parent.name in ("mambaout_official", "vmamba") else "timm"
    back = to_torch(name, variables, naming=naming)
    derived = back.keys() - state_dict.keys()
    assert all(key.endswith("num_batches_tracked") and back[key] == 0 for key in derived)
    assert state_dict.keys() <= back.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key, strict=True)
        assert not np.shares_memory(back[key], value)


def test_every_golden_is_of_a_model():
    assert {model_of(path) for path in MODELS} <= set(list_models())
