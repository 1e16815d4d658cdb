# SPDX-License-Identifier: Apache-2.0
"""The isotropic pair: one resolution, and blocks that differ in the mixer alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import block_in_numpy
from support.variables import randomised

from mambaout_jax.mixers.routes import token_order
from mambaout_jax.models import create_backbone, create_model, find_variant, list_models
from mambaout_jax.weights.convert import to_torch

SMALL = {"dim": 12, "depth": 2, "patch_size": 4}


@pytest.mark.parametrize("name", ["isotropic_mambaout_tiny", "isotropic_mamba_tiny"])
def test_model_is_patches_blocks_mean_norm_and_classifier(rng, name):
    model = create_model(name, num_classes=3, state_size=2, **SMALL)
    images = rng.standard_normal((2, 8, 12, 3), np.float32)
    variables = randomised(model, images)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    patches = images.astype(np.float64).reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    embed = p["backbone"]["patch_embed"]
    x = patches.reshape(2, 2, 3, 48) @ embed["kernel"].reshape(48, 12) + embed["bias"]
    raster = token_order("raster", 2, 3)
    walks = [(raster, False), (raster, True)] if "mamba_" in name else []
    for j in range(2):
        x = block_in_numpy(p["backbone"][f"block_{j:02d}"], x, walks)
    x = x.mean(axis=(1, 2))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["head"]["norm"]["scale"] + p["head"]["norm"]["bias"]
    expected = x @ p["head"]["classifier"]["kernel"] + p["head"]["classifier"]["bias"]
    got = jax.jit(model.apply)(variables, images)
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()


def test_a_pair_differs_in_the_token_mixer_alone():
    assert len(list_models("isotropic_mambaout_*")) == len(list_models("isotropic_mamba_*")) == 3
    for name in list_models("isotropic_mambaout_*"):
        mambaout = create_backbone(name)
        mamba = create_backbone(name.replace("mambaout", "mamba"))
        block = dataclasses.replace(mamba.block, token_mixer="conv", routes=None)
        back = mamba.clone(block=block)
        assert back == mambaout
        assert mamba.block.token_mixer == "conv+ssm"
    small, vit = find_variant("isotropic_mambaout_small")[1], find_variant(
        "deit_small_patch16_224"
    )[1]  # fmt: skip
    assert small.parameters == pytest.approx(vit.parameters, rel=0.02)


def test_sequence_grows_with_the_image():
    backbone = create_backbone("isotropic_mambaout_small")
    assert (backbone.channels, backbone.strides) == ((384,), (16,))
    for size, length in ((224, 196), (800, 2500)):
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        variables = jax.eval_shape(backbone.init, jax.random.key(0), image)
        (stage,) = jax.eval_shape(backbone.apply, variables, image)
        assert stage.shape[1] * stage.shape[2] == length
    assert length > 6 * 384  # long in the paper's sense


def test_no_classes_returns_what_the_classifier_reads(rng):
    images = rng.standard_normal((2, 8, 8, 3), np.float32)
    model = create_model("isotropic_mambaout_tiny", num_classes=0, **SMALL)
    variables = randomised(model, images)
    assert "classifier" not in variables["params"]["head"]
    features = jax.jit(model.apply)(variables, images)
    norm = variables["params"]["head"]["norm"]
    normed = (np.asarray(features) - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(normed.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(axis=-1), 1, rtol=1e-3)


def test_images_smaller_than_a_patch_are_an_error():
    with pytest.raises(ValueError, match="smaller than a patch of 16 pixels"):
        create_model("isotropic_mambaout_tiny").init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)))


def test_weights_have_no_pytorch_names():
    with pytest.raises(ValueError, match="isotropic_mambaout_tiny has no PyTorch names"):
        to_torch("isotropic_mambaout_tiny", {})
