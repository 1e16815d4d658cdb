# SPDX-License-Identifier: Apache-2.0
"""The family's behaviour; its numbers against the references are in test_goldens.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from support.oracles import block_in_numpy
from support.variables import randomised

from mambaout_jax.backbone import subtree
from mambaout_jax.models import create_backbone, create_model, list_models
from mambaout_jax.weights.convert import model_variables

SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 3}


@partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


@pytest.fixture
def images(rng):
    return rng.standard_normal((2, 32, 32, 3), np.float32)


def test_block_equals_algorithm_1_in_float64(rng):
    backbone = create_backbone("mambaout_tiny", depths=(1,), dims=(12,), drop_path=0.0)
    images = rng.standard_normal((2, 20, 12, 3), np.float32)
    variables = randomised(backbone, images)
    without = backbone.clone(depths=(0,))
    stem = apply(without, variables, images)[0]
    expected = block_in_numpy(variables["params"]["stage_0_block_00"], np.asarray(stem, np.float64))
    got = apply(backbone, variables, images)[0]
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(32, 32), (40, 72), (33, 47), (8, 8)])
def test_any_input_size_gives_maps_of_the_promised_strides(size):
    backbone = create_backbone("test_mambaout")
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), image)
    maps = jax.eval_shape(backbone.apply, variables, image)
    assert backbone.channels == (16, 32, 48, 64)
    assert backbone.strides == (4, 8, 16, 32)
    for stage, stride, channels in zip(maps, backbone.strides, backbone.channels, strict=True):
        # Every halving rounds up, as a 3x3 convolution padded by one does.
        assert stage.shape == (1, *(-(-side // stride) for side in size), channels)


@pytest.mark.slow
def test_features_are_the_maps_and_no_token(images):
    backbone = create_backbone("test_mambaout")
    variables = randomised(backbone, images)
    features = jax.jit(partial(backbone.apply, method="features"))(variables, images)
    assert features.token is None
    for one, other in zip(features.maps, apply(backbone, variables, images), strict=True):
        np.testing.assert_array_equal(one, other)


def test_backbone_runs_on_the_classifiers_subtree(images):
    model = create_model("mambaout_tiny", **SMALL)
    variables = randomised(model, images)
    backbone = create_backbone("mambaout_tiny", **SMALL)
    maps = apply(backbone, subtree(variables, "backbone"), images)
    inner = partial(model.apply, method=lambda model, images: model.backbone(images))
    expected = jax.jit(inner)(variables, images)
    np.testing.assert_array_equal(maps[-1], expected[-1])


def test_no_classes_returns_what_the_classifier_would_read(images):
    model = create_model("mambaout_tiny", **SMALL)
    variables = randomised(model, images)
    head = variables["params"]["head"]
    hidden = create_model("mambaout_tiny", **{**SMALL, "num_classes": 0})
    params = {**variables["params"], "head": {k: v for k, v in head.items() if k != "classifier"}}
    features = apply(hidden, {"params": params}, images)
    assert features.shape == (2, 64)
    logits = features @ head["classifier"]["kernel"] + head["classifier"]["bias"][None]
    np.testing.assert_allclose(logits, apply(model, variables, images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_initial_values_are_those_of_the_paper(images):
    model = create_model("mambaout_femto", dims=(64, 128), depths=(2, 2))
    params = jax.jit(model.init)(jax.random.key(3), images)["params"]
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in
            jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    kernels = np.concatenate([v.ravel() for k, v in flat.items() if "kernel" in k])
    # 0.02 exactly: a normal cut at two standard deviations would have 0.0176.
    assert kernels.std() == pytest.approx(0.02, rel=0.01)
    assert np.abs(kernels).max() > 0.07
    for name, leaf in flat.items():
        if "kernel" not in name:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in name else 0.0, err_msg=name)


@pytest.mark.parametrize(("name", "value"), [("test_mambaout", 1e-4), ("mambaout_small_rw", 1e-6)])
def test_layer_scale_starts_at_the_value_asked_for(name, value):
    model = create_model(name, depths=(1,), dims=(8,), num_classes=2)

    @jax.jit  # which leaves out what the factors do not need
    def init(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
        return params["backbone"]["stage_0_block_00"]["layer_scale"]["gamma"]

    gamma = init(jax.random.key(0))
    np.testing.assert_array_equal(gamma, np.full(8, value, np.float32))


def test_drop_path_grows_linearly_to_the_rate_asked_for():
    for name in (*list_models("mambaout*"), "test_mambaout"):
        backbone = create_backbone(name, drop_path=0.3)
        rates = backbone.stage_rates
        assert [len(stage) for stage in rates] == list(backbone.depths)
        expected = np.linspace(0, 0.3, sum(backbone.depths))
        np.testing.assert_allclose(np.concatenate(rates), expected, atol=1e-12)


def test_published_drop_path_is_the_default():
    published = {"femto": 0.025, "kobe": 0.025, "tiny": 0.2, "small": 0.4, "base": 0.6}
    for size, rate in published.items():
        assert create_backbone(f"mambaout_{size}").drop_path == rate
    assert create_backbone("mambaout_base", drop_path=0.0).drop_path == 0.0


@pytest.mark.slow
def test_remat_changes_neither_names_nor_values_nor_gradients(images):
    plain = create_model("mambaout_tiny", **SMALL, drop_path=0.5)
    remat = create_model("mambaout_tiny", **SMALL, drop_path=0.5, remat=True)
    variables = randomised(plain, images)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(remat.init, jax.random.key(0), images)
    )

    def loss(model, variables):
        key = jax.random.key(5)
        return model.apply(variables, images, train=True, rngs={"dropout": key}).sum()

    value, gradient = jax.jit(jax.value_and_grad(partial(loss, plain)))(variables)
    value_remat, gradient_remat = jax.jit(jax.value_and_grad(partial(loss, remat)))(variables)
    np.testing.assert_allclose(value, value_remat, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_remat), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(images):
    full = create_model("mambaout_tiny", **SMALL)
    half = create_model("mambaout_tiny", **SMALL, dtype=jnp.bfloat16)
    variables = randomised(full, images)
    maps = apply(half.backbone, subtree(variables, "backbone"), images)
    assert {stage.dtype for stage in maps} == {jnp.dtype(jnp.bfloat16)}
    reference = apply(full.backbone, subtree(variables, "backbone"), images)
    for stage, exact in zip(maps, reference, strict=True):
        error = np.abs(np.asarray(stage, np.float32) - exact)
        assert 0 < error.max() <= 0.05 * np.abs(exact).max()
    assert apply(half, variables, images).dtype == jnp.float32


@pytest.mark.slow
def test_float64_goes_through_in_float64(images):
    with jax.enable_x64(True):
        model = create_model("test_mambaout", depths=(1, 1, 1, 1))
        variables = randomised(model, images)
        double = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        exact = apply(model, double, jnp.asarray(images, jnp.float64))
        assert exact.dtype == jnp.float64
        rounded = apply(model, variables, jnp.asarray(images, jnp.float32))
    assert rounded.dtype == jnp.float32
    error = np.abs(np.asarray(rounded, np.float64) - np.asarray(exact)).max()
    assert 0 < error < 1e-4 * np.abs(exact).max()


def test_wrong_options_are_named():
    with pytest.raises(TypeError, match="did you mean kernel_size"):
        create_model("mambaout_tiny", kernel_sizes=5)
    with pytest.raises(ValueError, match="did you mean mambaout_tiny"):
        create_model("mambaout_tinny")
    model = create_model("mambaout_tiny", **SMALL, conv_ratio=0)
    with pytest.raises(
        ValueError, match=r"conv_ratio=0 of \d+ channels leaves none to mix; it must"
    ):
        model_variables(model, 8)
    with pytest.raises(ValueError, match=r"conv_ratio=3\.0 is larger than expansion_ratio"):
        create_model("mambaout_tiny", **SMALL, conv_ratio=3.0)
    with pytest.raises(ValueError, match=r"depths=\(1, 2\) and dims=\(8, 16, 24\) must have one"):
        model_variables(create_model("mambaout_tiny", **{**SMALL, "dims": (8, 16, 24)}), 8)
    with pytest.raises(ValueError, match="activation='softsign' is not known"):
        model_variables(create_model("mambaout_tiny", **SMALL, activation="softsign"), 8)


def test_list_models_takes_a_pattern():
    assert list_models("*_rw") == [
        "mambaout_small_rw",
        "mambaout_base_short_rw",
        "mambaout_base_tall_rw",
        "mambaout_base_wide_rw",
        "mambaout_base_plus_rw",
    ]
    with pytest.raises(ValueError, match="dilation=2 is for a convolution, and token_mixer='ssm'"):
        create_model("mambaout_tiny", token_mixer="ssm", dilation=2)


def test_ssm_alone_is_the_mamba_block_without_its_convolution(images):
    options = {**SMALL, "depths": (1, 1)}
    alone = create_model("mambaout_tiny", **options, token_mixer="ssm")
    both = create_model("mambaout_tiny", **options, token_mixer="conv+ssm", kernel_size=3)
    variables = randomised(both, images)
    names, given = [], {}
    for path, leaf in flatten_dict(variables).items():
        if path[-2] == "conv" and "block" in path[2]:
            leaf = np.zeros(leaf.shape, np.float32)
            if path[-1] == "kernel":
                leaf[1, 1] = 1  # passes maps through
            names.append(path)
        given[path] = leaf
    rest = {path: leaf for path, leaf in given.items() if path not in names}
    assert len(names) > 1
    found = apply(alone, unflatten_dict(rest), images)
    np.testing.assert_allclose(found, apply(both, unflatten_dict(given), images), atol=1e-5)
