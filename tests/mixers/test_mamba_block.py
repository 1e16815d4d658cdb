# SPDX-License-Identifier: Apache-2.0
"""The Mamba block of MambaOut: Eq. 11 in numpy, and that nothing differs but the token mixer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import block_in_numpy
from support.variables import randomised

from mambaout_jax.backbone import subtree
from mambaout_jax.mixers.routes import ROUTES, paths_of, token_order
from mambaout_jax.models import create_backbone, create_model, find_variant, list_models

SMALL = {"depths": (1, 1), "dims": (8, 16), "state_size": 3}
SSM = {"token_mixer": "conv+ssm"}


@pytest.mark.parametrize("routes", ["cross", "snake"])
def test_block_equals_equation_11_in_float64(rng, routes):
    fields = {**SSM, "routes": routes, "state_size": 3}
    backbone = create_backbone("mambaout_tiny", depths=(1,), dims=(12,), drop_path=0.0, **fields)
    images = rng.standard_normal((2, 20, 12, 3), np.float32)
    variables = randomised(backbone, images)
    stem = jax.jit(backbone.clone(depths=(0,)).apply)(variables, images)[0]
    walks = [(token_order(path.order, 5, 3), path.reverse) for path in paths_of(routes)]
    block = variables["params"]["stage_0_block_00"]
    expected = block_in_numpy(block, np.asarray(stem, np.float64), walks)
    got = jax.jit(backbone.apply)(variables, images)[0]
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


def test_only_the_ssm_is_added():
    image = jnp.zeros((1, 32, 32, 3))
    with_ssm, without = (
        jax.eval_shape(create_model("mambaout_tiny", **fields).init, jax.random.key(0), image)
        for fields in ({**SMALL, **SSM}, SMALL)
    )
    backbone = with_ssm["params"]["backbone"]
    for name, block in backbone.items():
        if "block" in name:
            assert set(block.pop("ssm")) == {"path_0", "path_1", "path_2", "path_3"}
    assert jax.tree.map(jnp.shape, with_ssm) == jax.tree.map(jnp.shape, without)


def test_a_silent_ssm_leaves_the_activated_convolution(rng):
    # With C = 0 and D = 1 on one of the paths and 0 on the others the SSM is the identity.
    images = rng.standard_normal((1, 16, 16, 3), np.float32)
    backbone = create_backbone("mambaout_tiny", **SMALL, **SSM, drop_path=0.0)
    variables = randomised(backbone, images)

    def silence(path, leaf):
        names = [key.key for key in path]
        if names[-1] == "D":
            return np.full_like(leaf, "path_1" in names)
        return np.zeros_like(leaf) if "x_proj" in names else leaf

    variables = jax.tree_util.tree_map_with_path(silence, variables)
    first = jax.jit(backbone.apply)(variables, images)[0]
    stem = jax.jit(backbone.clone(depths=(0, 0)).apply)(variables, images)[0]
    block = variables["params"]["stage_0_block_00"]
    identity = [(token_order("raster", 4, 4), False)]
    ssm = {"path_0": {**block["ssm"]["path_1"]}}
    expected = block_in_numpy({**block, "ssm": ssm}, np.asarray(stem, np.float64), identity)
    assert np.abs(first - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", list_models("mambaout_*_ssm"))
def test_matched_variants_cost_what_the_model_without_costs(name):
    _, matched = find_variant(name)
    _, without = find_variant(name.removesuffix("_ssm"))
    assert matched.macs == pytest.approx(without.macs, rel=0.01)
    assert matched.backbone["depths"] == without.backbone["depths"]
    assert matched.drop_path == without.drop_path
    ratios = np.divide(matched.backbone["dims"], without.backbone["dims"])
    assert np.ptp(ratios) < 0.025  # all stages are narrower alike


def test_there_is_a_matched_variant_of_every_size():
    assert list_models("mambaout_*_ssm") == [
        f"mambaout_{size}_ssm" for size in ("micro", "femto", "tiny", "small", "base")
    ]


@pytest.mark.slow
def test_remat_and_the_scan_implementation_change_no_gradient(rng):
    images = rng.standard_normal((1, 16, 16, 3), np.float32)
    fields = {**SMALL, **SSM, "routes": "bidirectional", "num_classes": 3, "drop_path": 0.0}
    variables = randomised(create_model("mambaout_tiny", **fields), images)

    def gradients(**more):
        model = create_model("mambaout_tiny", **fields, **more)
        return jax.jit(jax.grad(lambda v: (model.apply(v, images, train=True) ** 2).sum()))(
            variables
        )

    expected = gradients(scan_implementation="sequential")
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for more in ({}, {"remat": True}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradients(**more),
            expected,
        )  # fmt: skip


@pytest.mark.slow
def test_every_route_reaches_every_token(rng):
    # Over all paths together; a single path looks one way. Phases see a quarter of the tokens each.
    images = rng.standard_normal((1, 16, 16, 3), np.float32)
    for routes in ROUTES:
        backbone = create_backbone(
            "mambaout_tiny", depths=(1,), dims=(8,), kernel_size=1, **SSM, routes=routes
        )
        variables = randomised(backbone, images)
        moved = np.zeros((4, 4), bool)
        pixels = [(0, 0), (15, 15)]
        if routes == "phases":  # the first and the last token of each
            pixels += [(0, 4), (4, 0), (4, 4), (8, 8), (8, 12), (12, 8)]
        for pixel in pixels:
            changed = images.copy()
            changed[0, *pixel] += 1
            before, after = (jax.jit(backbone.apply)(variables, x)[0] for x in (images, changed))
            moved |= np.abs(np.asarray(after) - before).max(axis=(0, 3)) > 0
        assert moved.all(), routes


def test_wrong_mixers_and_routes_are_errors():
    image = jnp.zeros((1, 8, 8, 3))

    def make(**fields):
        create_model("mambaout_tiny", **SMALL, **fields).init(jax.random.key(0), image)

    with pytest.raises(ValueError, match=r"token_mixer='s4' is not known; allowed are 'conv', 'c"):
        make(token_mixer="s4")
    with pytest.raises(ValueError, match="routes='cross' is for an SSM, and token_mixer='conv'"):
        make(routes="cross")
    with pytest.raises(ValueError, match="routes='spiral' is not known"):
        make(token_mixer="conv+ssm", routes="spiral")


def test_weights_of_a_mamba_block_have_no_pytorch_names(rng):
    from mambaout_jax.weights.convert import to_torch

    fields = {**SMALL, **SSM, "num_classes": 3}
    variables = randomised(create_model("mambaout_tiny", **fields), np.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match=r"in the timm naming: no name for the parameter .*ssm"):
        to_torch("mambaout_tiny", variables, **fields)
    assert "ssm" in subtree(variables, "backbone")["params"]["stage_0_block_00"]
