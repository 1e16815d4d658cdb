# SPDX-License-Identifier: Apache-2.0
"""Every model against what its public PyTorch implementation computed (see goldens/fill.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from support.goldens import read_golden
from support.places import GOLDENS as FOLDER

from mambaout_jax.models import create_model
from mambaout_jax.weights.convert import from_torch, to_torch

# (folder, naming): the smallest model of each runs by default
SMALLEST = {
    "mambaout/test_mambaout",
    "mambaout_official/mambaout_femto",
    "deit/deit_tiny_patch16_224",
}
TOLERANCE = 5e-5  # of the standard deviation of what is compared


def golden(path):
    name = f"{path.parent.name}/{path.stem}"
    return pytest.param(path, id=name, marks=() if name in SMALLEST else pytest.mark.goldens)


OTHERS = ("mamba", "recipe")  # no models
PATHS = [path for path in sorted(FOLDER.glob("*/*.npz")) if path.parent.name not in OTHERS]
GOLDENS = [golden(path) for path in PATHS]


def reference_stages(backbone, variables, images):
    """What the reference calls its stages, in its layout."""
    if not hasattr(backbone, "depth"):
        maps = backbone.apply(variables, images)
        return {f"stages_{i}": stage for i, stage in enumerate(maps)}
    stages = {}
    for depth in (1, backbone.depth // 2, backbone.depth):
        features = backbone.clone(depth=depth).apply(variables, images, method="features")
        patches = features.maps[-1].reshape(len(images), -1, backbone.dim)
        tokens = jnp.concatenate((features.token[:, None], patches), axis=1)  # class token first
        stages[f"blocks_{depth - 1}"] = tokens
    return stages


@pytest.mark.parametrize("path", GOLDENS)
def test_outputs_and_stages_equal_the_reference(path):
    arrays, meta, state_dict = read_golden(path)
    variables = from_torch(path.stem, state_dict)
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    model = create_model(path.stem)

    @jax.jit
    def forward(variables, images):
        backbone = {"params": variables["params"]["backbone"]}
        return model.apply(variables, images), reference_stages(model.backbone, backbone, images)

    logits, stages = forward(variables, images)
    error = np.abs(logits - arrays["output"]).max() / arrays["output"].std()
    assert error <= TOLERANCE
    for label, stage in stages.items():
        summary = meta["stages"][label]
        assert list(stage.shape) == summary["shape"]
        assert abs(float(stage.mean()) - summary["mean"]) <= TOLERANCE * summary["std"]
        assert abs(float(stage.std()) / summary["std"] - 1) <= TOLERANCE
        first = np.asarray(stage).ravel()[:64]
        assert np.abs(first - arrays[f"stage_{label}"]).max() <= TOLERANCE * summary["std"]


@pytest.mark.parametrize("path", GOLDENS)
def test_conversion_there_and_back_is_bit_exact(path):
    _, meta, state_dict = read_golden(path)
    naming = "official" if path.parent.name.endswith("_official") else "timm"
    variables = from_torch(path.stem, state_dict)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == meta["n_params"]
    back = to_torch(path.stem, variables, naming=naming)
    assert back.keys() == state_dict.keys()
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name, strict=True)
