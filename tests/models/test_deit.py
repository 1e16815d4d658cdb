# SPDX-License-Identifier: Apache-2.0
"""The family's behaviour; its numbers at 224 pixels are in test_goldens.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of, value_of
from scipy.special import erf
from support.oracles import attention
from support.tiny_run import get_config

from mambaout_jax.backbone import subtree
from mambaout_jax.models import create_backbone, create_model, list_models
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.tasks.setup import set_up
from mambaout_jax.train.loop import train
from mambaout_jax.weights.convert import from_torch, model_variables, to_torch

NAME = "deit_tiny_patch16_224"
# Maps of 3 x 4 patches for images of 12 x 16 pixels.
SMALL = {"dim": 12, "depth": 2, "heads": 3, "patch_size": 4, "image_size": (12, 16)}

# timm 1.0.31, deit_tiny_patch16_224 with dynamic_img_size=True and values by goldens/fill.py,
# images of seed 1: the first four logits, mean and standard deviation of all. For "causal" its
# blocks got a mask under which the class token, first there, sees all tokens, and patch i sees the
# patches j <= i.
TIMM = {
    ("full", 160, 256): ([0.0382165, -0.0767192, -1.4220217, 1.4693698], 0.0013824, 0.9973587),
    ("full", 32, 48): ([-0.1790537, -0.5757565, 0.2532713, 0.1487857], 0.0069349, 0.9849065),
    ("causal", 96, 64): ([0.1451782, 0.2044009, -1.1059674, 1.4519460], 0.0150718, 0.9597148),
}


# Compiled once for all tests that ask the same model.


@partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


@partial(jax.jit, static_argnums=0)
def features(backbone, variables, images):
    return backbone.apply(variables, images, method="features")


def randomised(model, images, seed=0):
    """Variables of ordinary sizes, so that no branch is near zero."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        return 0.3 * noise + (path[-1].key == "scale")

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(value, shapes)


@pytest.fixture
def images(rng):
    return rng.standard_normal((2, 12, 16, 3), np.float32)


@pytest.fixture
def variables(images):
    return randomised(create_model(NAME, **SMALL, num_classes=5), images)


def model_in_numpy(params, images, heads, patch, causal):
    """Tokens of every block, class token first as in the paper, and logits, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    body, head = p["backbone"], p["head"]

    def norm(x, q):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * q["scale"] + q["bias"]

    def linear(x, q):
        return x @ q["kernel"] + q["bias"]

    batch, height, width, _ = images.shape
    tokens = [np.broadcast_to(body["cls_token"][0, 0], (batch, body["cls_token"].shape[-1]))]
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            piece = images[:, top : top + patch, left : left + patch].astype(np.float64)
            kernel = body["patch_embed"]["kernel"]
            tokens.append(np.einsum("bijc,ijcd->bd", piece, kernel) + body["patch_embed"]["bias"])
    x = np.stack(tokens, axis=1) + body["pos_embed"]

    mask = np.ones((len(tokens), len(tokens)), bool)
    if causal:
        mask[1:] = [[0 < j <= i for j in range(len(tokens))] for i in range(1, len(tokens))]
    blocks = []
    for name in sorted(key for key in body if key.startswith("block")):
        q = body[name]
        qkv = linear(norm(x, q["norm1"]), q["attention"]["qkv"])
        parts = np.split(qkv, 3 * heads, axis=-1)  # the heads of q, those of k, those of v
        mixed = [attention(parts[h], parts[heads + h], parts[2 * heads + h], mask)
                 for h in range(heads)]  # fmt: skip
        x = x + linear(np.concatenate(mixed, -1), q["attention"]["proj"])
        hidden = linear(norm(x, q["norm2"]), q["mlp"]["fc1"])
        x = x + linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), q["mlp"]["fc2"])
        blocks.append(x)
    return blocks, linear(norm(x[:, 0], head["norm"]), head["classifier"])


@pytest.mark.parametrize("mode", ["full", "causal"])
def test_model_equals_the_paper_in_float64(variables, images, mode):
    blocks, exact = model_in_numpy(variables["params"], images, 3, 4, mode == "causal")
    model = create_model(NAME, **SMALL, num_classes=5, attention=mode, out_blocks=(0, 1))
    np.testing.assert_allclose(apply(model, variables, images), exact, atol=5e-6)
    found = features(model.backbone, subtree(variables, "backbone"), images)
    np.testing.assert_allclose(found.token, blocks[-1][:, 0], atol=5e-6)
    for stage, tokens in zip(found.maps, blocks, strict=True):
        np.testing.assert_allclose(stage, tokens[:, 1:].reshape(2, 3, 4, 12), atol=5e-6)


@pytest.fixture(scope="module")
def filled():
    """Variables of the published size, by the goldens' rule."""
    shapes = model_variables(create_model(NAME), 224)
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    state = {name: value_of(name, x.shape) for name, x in to_torch(NAME, empty).items()}
    return from_torch(NAME, state)


@pytest.mark.parametrize(("mode", "height", "width"), TIMM)
def test_logits_at_other_sizes_and_causal_are_timms(filled, mode, height, width):
    first, mean, std = TIMM[mode, height, width]
    images = input_of((1, 3, height, width), 1).transpose(0, 2, 3, 1)
    logits = apply(create_model(NAME, attention=mode), filled, images)[0]
    np.testing.assert_allclose(logits[:4], first, atol=5e-5 * std)
    np.testing.assert_allclose([logits.mean(), logits.std()], [mean, std], atol=5e-5 * std)


def test_causal_and_full_have_the_same_parameters(variables, images):
    for mode in ("full", "causal"):
        model = create_model(NAME, **SMALL, num_classes=5, attention=mode)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("mode", ["full", "causal"])
def test_a_patch_reaches_only_later_patches_and_the_class_token(variables, images, mode):
    backbone = create_backbone(NAME, **SMALL, attention=mode)
    variables = subtree(variables, "backbone")
    before = features(backbone, variables, images)
    for row in range(3):
        for column in range(4):
            changed = images.copy()
            changed[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
            after = features(backbone, variables, changed)
            moved = np.any(after.maps[0] != before.maps[0], axis=(0, 3)).ravel()
            reached = np.arange(12) >= 4 * row + column
            np.testing.assert_array_equal(moved, reached if mode == "causal" else [True] * 12)
            assert np.all(np.any(after.token != before.token, axis=-1))


@pytest.mark.parametrize("mode", ["full", "causal"])
def test_no_patch_sees_the_class_token_where_it_is_causal(variables, images, mode):
    backbone = create_backbone(NAME, **SMALL, attention=mode)
    params = subtree(variables, "backbone")["params"]
    before = features(backbone, {"params": params}, images)
    changed = {**params, "cls_token": params["cls_token"] + 1}
    after = features(backbone, {"params": changed}, images)
    assert np.all(np.any(after.token != before.token, axis=-1))
    assert np.all(np.any(after.maps[0] != before.maps[0], axis=-1)) == (mode == "full")
    assert np.array_equal(after.maps[0], before.maps[0]) == (mode == "causal")


def test_channels_and_strides_are_known_before_and_kept():
    backbone = create_backbone(NAME, out_blocks=(2, 5, 8, 11))
    assert (backbone.channels, backbone.strides) == ((192,) * 4, (16,) * 4)
    image = jax.ShapeDtypeStruct((1, 64, 176, 3), jnp.float32)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), image)
    assert variables["params"]["pos_embed"].shape == (1, 197, 192)
    maps = jax.eval_shape(backbone.apply, variables, image)
    assert [stage.shape for stage in maps] == [(1, 4, 11, 192)] * 4
    backbone = create_backbone("deit_base_patch16_224", image_size=(32, 48))
    assert (backbone.channels, backbone.strides, backbone.grid) == ((768,), (16,), (2, 3))


def test_no_classes_returns_what_the_classifier_would_read(variables, images):
    head = variables["params"]["head"]
    params = {"backbone": variables["params"]["backbone"], "head": {"norm": head["norm"]}}
    model = create_model(NAME, **SMALL, num_classes=0)
    found = apply(model, {"params": params}, images)
    assert found.shape == (2, 12)
    np.testing.assert_allclose(
        found @ head["classifier"]["kernel"] + head["classifier"]["bias"][None],
        apply(create_model(NAME, **SMALL, num_classes=5), variables, images),
        atol=1e-5,
    )


def test_initial_values_are_those_of_deits_code(images):
    model = create_model(NAME, **{**SMALL, "dim": 96})
    params = jax.jit(model.init)(jax.random.key(3), images)["params"]
    body = params["backbone"]
    limit = 48**-0.5  # PyTorch's convolution of 4 x 4 pixels and three channels
    for leaf in body["patch_embed"].values():
        assert 0.97 * limit < np.abs(leaf).max() <= limit
        assert leaf.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)
    flat = jax.tree_util.tree_leaves_with_path((body["block_00"], body["block_01"], params["head"]))
    for path, leaf in flat:
        if path[-1].key == "kernel":
            assert leaf.std() == pytest.approx(0.02, rel=0.03)
        else:
            np.testing.assert_array_equal(leaf, float(path[-1].key == "scale"))
    assert body["pos_embed"].std() == pytest.approx(0.02, rel=0.1)
    assert body["cls_token"].std() == pytest.approx(0.02, rel=0.3)


def test_published_drop_path_is_the_default_and_drops_whole_branches(variables, images):
    for name in list_models("deit*"):
        assert create_backbone(name).drop_path == 0.1
    # The first block never drops; the second one drops either branch, both, or none.
    backbone = create_backbone(NAME, **SMALL, drop_path=0.5)
    params = subtree(variables, "backbone")
    many = np.broadcast_to(images[:1], (64, *images.shape[1:]))
    key = jax.random.key(0)
    train = jax.jit(partial(backbone.apply, train=True, rngs={"dropout": key}))
    found = train(params, many)[0]
    assert len(np.unique(np.asarray(found).reshape(64, -1).round(3), axis=0)) == 4


@pytest.mark.slow
def test_remat_changes_neither_names_nor_values_nor_gradients(variables, images):
    plain = create_model(NAME, **SMALL, num_classes=5, drop_path=0.5, attention="causal")
    remat = create_model(
        NAME, **SMALL, num_classes=5, drop_path=0.5, attention="causal", remat=True
    )
    shapes = jax.eval_shape(remat.init, jax.random.key(0), images)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)

    def loss(model, variables):
        key = jax.random.key(5)
        return model.apply(variables, images, train=True, rngs={"dropout": key}).sum()

    value, gradient = jax.jit(jax.value_and_grad(partial(loss, plain)))(variables)
    value_remat, gradient_remat = jax.jit(jax.value_and_grad(partial(loss, remat)))(variables)
    np.testing.assert_allclose(value, value_remat, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_remat), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    assert np.abs(gradient["params"]["backbone"]["cls_token"]).max() > 0


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(variables, images):
    half = create_model(NAME, **SMALL, num_classes=5, dtype=jnp.bfloat16)
    found = features(half.backbone, subtree(variables, "backbone"), images)
    assert {found.maps[0].dtype, found.token.dtype} == {jnp.dtype(jnp.bfloat16)}
    exact = apply(create_model(NAME, **SMALL, num_classes=5), variables, images)
    logits = apply(half, variables, images)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() <= 0.05 * np.abs(exact).max()


def test_float64_goes_through_in_float64(variables, images):
    _, exact = model_in_numpy(variables["params"], images, 3, 4, causal=False)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        model = create_model(NAME, **SMALL, num_classes=5)
        logits = apply(model, double, jnp.asarray(images, jnp.float64))
    np.testing.assert_allclose(logits, exact, atol=1e-12)


def test_what_cannot_be_is_named(variables):
    model = create_model(NAME)
    with pytest.raises(
        ValueError,
        match=r"230 x 10 pixels .* patches of 16; .* heights are 224 or 240, .* widths 16: resize",
    ):
        model_variables(model, (230, 10))
    for option, words in (
        ({"image_size": 100}, "images of 100 x 100 pixels .* 96 or 112"),
        ({"attention": "masked"}, "attention='masked' is not known; allowed are .*full.*causal"),
        ({"heads": 5}, "heads=5 does not divide the 192 channels"),
        ({"out_blocks": (3, 12)}, r"out_blocks=\(3, 12\) must be blocks from 0 to 11"),
        ({"out_blocks": (5, 3)}, "in rising order"),
        ({"out_blocks": ()}, r"out_blocks=\(\)"),
    ):
        with pytest.raises(ValueError, match=words):
            model_variables(create_model(NAME, **option), 32)
    with pytest.raises(TypeError, match="did you mean attention"):
        create_model(NAME, atention="causal")


@pytest.mark.slow
def test_it_trains_on_digits_by_config(tmp_path):
    config = get_config()
    config.model.name = NAME
    config.model.options = {"dim": 24, "depth": 1, "heads": 3, "patch_size": 8}
    config.ema.decay = 0.0
    config.data.image_size = 32
    config.schedule.total_steps = 40
    config.schedule.warmup_steps = 10
    config.evaluation.every_steps = config.checkpoint.every_steps = 40
    assert set_up(config).model.backbone.grid == (4, 4)
    metrics = train(config, tmp_path)
    assert metrics["eval/top1"] > 0.5
    state = read_checkpoint(tmp_path / "checkpoints").state
    assert state["params"]["backbone"]["pos_embed"].shape == (1, 17, 24)
