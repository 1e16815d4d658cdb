# SPDX-License-Identifier: Apache-2.0
"""Weights with a table of positions, which belongs to an image size."""

import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
from support.weight_files import assert_same, logits

from mambaout_jax.models import create_model, deit, find_variant
from mambaout_jax.weights.convert import model_variables, to_torch
from mambaout_jax.weights.load import convert_file, load_pretrained, save_variables

DEIT = {"dim": 12, "depth": 1, "heads": 3}


def write_deit(path, image_size, own=False):
    """Random weights of a small DeiT for images of a size, in timm's names or our own."""
    options = {**DEIT, "num_classes": 3, "image_size": image_size}
    rng = np.random.default_rng(0)
    shapes = model_variables(create_model("deit_tiny_patch16_224", **options), image_size)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    if own:
        save_variables(variables, path, {"model": "deit_tiny_patch16_224"})
    else:
        safetensors.numpy.save_file(to_torch("deit_tiny_patch16_224", variables, **options), path)
    return variables


@pytest.mark.parametrize("own", [False, True])
def test_position_table_tells_the_image_size(tmp_path, own):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, 80, own)
    model, loaded = load_pretrained(path, **DEIT)
    assert model.backbone.grid == (5, 5)
    assert_same(loaded, variables)
    _, again = load_pretrained(path, image_size=(80, 80), **DEIT)
    assert_same(again, variables)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("image_size", [64, (48, 112)])
def test_other_image_size_interpolates_the_positions_once_and_says_so(
    tmp_path, rng, caplog, own, image_size
):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, 80, own)
    with caplog.at_level(logging.INFO, "mambaout_jax"):
        model, loaded = load_pretrained(path, image_size=image_size, **DEIT)
    rows, columns = (4, 4) if image_size == 64 else (3, 7)
    words = f"{path}: positions interpolated from 5 x 5 to {rows} x {columns} patches"
    assert [record.getMessage() for record in caplog.records] == [words]
    assert model.backbone.grid == (rows, columns)
    assert loaded["params"]["backbone"]["pos_embed"].shape == (1, 1 + rows * columns, 12)
    # What the model of the weights' own size does with such images.
    images = rng.standard_normal((2, 16 * rows, 16 * columns, 3), np.float32)
    source = create_model("deit_tiny_patch16_224", num_classes=3, image_size=80, **DEIT)
    np.testing.assert_allclose(
        logits(model, loaded, images), logits(source, variables, images), atol=1e-5
    )
    for name in ("cls_token", "patch_embed", "block_00"):
        assert_same(loaded["params"]["backbone"][name], variables["params"]["backbone"][name])


def test_table_that_is_not_square_needs_its_image_size(tmp_path):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, (32, 80))
    _, loaded = load_pretrained(path, image_size=(32, 80), **DEIT)
    assert_same(loaded, variables)
    with pytest.raises(ValueError, match=r"has \(1, 197, 12\), the weights have \(1, 11, 12\)"):
        load_pretrained(path, **DEIT)


def test_last_layer_afresh_at_a_size_that_the_published_one_does_not_fit(tmp_path):
    options = {**DEIT, "patch_size": 5}
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=20, **options)
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), model_variables(model, 20)
    )
    save_variables(variables, path)
    model, loaded = load_pretrained(path, reset_head=True, num_classes=4, **options)
    assert model.backbone.image_size == 20
    assert loaded["params"]["head"]["classifier"]["kernel"].std() == pytest.approx(0.02, rel=0.4)


@pytest.mark.parametrize("naming", [None, "timm"])
def test_converted_file_keeps_its_position_table(tmp_path, monkeypatch, naming):
    # Without options there is only the published shape of the network.
    row = find_variant("deit_tiny_patch16_224")[1]
    monkeypatch.setitem(deit.VARIANTS, "deit_tiny_patch16_224", row._replace(backbone=DEIT))
    path, out = tmp_path / "deit_tiny_patch16_224.safetensors", tmp_path / "out.safetensors"
    variables = write_deit(path, 64, own=naming is not None)
    assert "tensors equal bit for bit" in convert_file(path, out, naming=naming)
    _, loaded = load_pretrained(out, "deit_tiny_patch16_224")
    assert_same(loaded, variables)


def test_backbone_of_a_wrapped_detector_is_read_under_names_that_begin_alike(tmp_path, rng):
    small = {"dim": 8, "depth": 1}
    options = {**small, "num_classes": 0, "image_size": 48}
    shapes = model_variables(create_model("plainmamba_l1", **options), 48)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = to_torch("plainmamba_l1", variables, "official", **options)
    path = tmp_path / "plainmamba_l1.safetensors"
    safetensors.numpy.save_file({f"module.{key}": value for key, value in state.items()}, path)
    model, loaded = load_pretrained(path, **small)
    assert (model.head.num_classes, model.backbone.grid) == (0, (3, 3))
    assert_same(loaded, variables)
