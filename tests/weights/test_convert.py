# SPDX-License-Identifier: Apache-2.0
"""Strictness of the conversion; its numbers are tested in test_goldens.py."""

import jax
import numpy as np
import pytest
from goldens.fill import value_of

from mambaout_jax.models import create_model
from mambaout_jax.weights.convert import from_torch, model_variables, namings, to_torch

MODEL = {"depths": (1, 1), "dims": (8, 16), "num_classes": 3}


@pytest.fixture
def variables(rng):
    shapes = model_variables(create_model("mambaout_tiny", **MODEL), 32)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def test_known_shapes_are_those_of_the_model_and_the_callers_own():
    for dims in ((8, 16), (8, 24), (8, 16)):
        model = create_model("mambaout_tiny", **{**MODEL, "dims": dims})
        for size in (8, (12, 8)):
            shapes = model_variables(model, size)
            assert shapes["params"]["head"]["hidden"]["kernel"].shape == (dims[1], 4 * dims[1])
            shapes["params"].clear()


def test_official_and_timm_names_hold_the_same_tensors(variables):
    timm = to_torch("mambaout_tiny", variables, naming="timm", **MODEL)
    official = to_torch("mambaout_tiny", variables, naming="official", **MODEL)
    pairs = {
        "stem.conv1.weight": "downsample_layers.0.conv1.weight",
        "stages.1.downsample.norm.bias": "downsample_layers.1.norm.bias",
        "stages.1.blocks.0.fc1.weight": "stages.1.0.fc1.weight",
        "head.norm.weight": "norm.weight",
        "head.pre_logits.fc.weight": "head.fc1.weight",
        "head.pre_logits.norm.weight": "head.norm.weight",
        "head.fc.weight": "head.fc2.weight",
    }
    assert len(timm) == len(official)
    for one, other in pairs.items():
        np.testing.assert_array_equal(timm[one], official[other])


def test_layouts_are_those_of_torch(variables):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    params = variables["params"]
    linear = params["backbone"]["stage_0_block_00"]["fc1"]["kernel"]
    np.testing.assert_array_equal(state["stages.0.blocks.0.fc1.weight"][5, 2], linear[2, 5])
    depthwise = params["backbone"]["stage_0_block_00"]["conv"]["kernel"]
    assert state["stages.0.blocks.0.conv.weight"].shape == (8, 1, 7, 7)
    np.testing.assert_array_equal(
        state["stages.0.blocks.0.conv.weight"][3, 0, 1, 6], depthwise[1, 6, 0, 3]
    )
    dense = params["backbone"]["downsample_1"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        state["stages.1.downsample.conv.weight"][9, 4, 0, 2], dense[0, 2, 4, 9]
    )


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "state_dict_ema"])
def test_checkpoint_wrappers_are_opened(variables, wrapper):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    read = from_torch("mambaout_tiny", {wrapper: state, "epoch": 3}, **MODEL)
    np.testing.assert_array_equal(
        read["params"]["head"]["classifier"]["kernel"],
        variables["params"]["head"]["classifier"]["kernel"],
    )


def test_half_precision_is_widened_and_double_kept(variables):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    state["stem.conv1.bias"] = np.asarray([0.5, 0.25, 2, 1], np.float16)
    state["stem.conv2.bias"] = np.linspace(0, 1, 8)
    stem = from_torch("mambaout_tiny", state, **MODEL)["params"]["backbone"]["stem"]
    assert stem["conv1"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(stem["conv1"]["bias"], [0.5, 0.25, 2, 1])
    assert stem["conv2"]["bias"].dtype == np.float64
    np.testing.assert_array_equal(stem["conv2"]["bias"], np.linspace(0, 1, 8))


def test_mismatch_lists_missing_unexpected_and_wrong_shapes(variables):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    del state["stem.conv1.bias"]
    state["stages.7.blocks.0.fc1.weight"] = np.zeros((2, 2), np.float32)
    state["head.fc.weight"] = np.zeros((5, 64), np.float32)
    with pytest.raises(ValueError, match="not those of mambaout_tiny in timm naming") as caught:
        from_torch("mambaout_tiny", state, **MODEL)
    lines = str(caught.value).split("\n")
    assert "missing" in lines[1]
    assert "(1): stem.conv1.bias" in lines[1]
    assert "unexpected" in lines[2]
    assert "(1): stages.7.blocks.0.fc1.weight" in lines[2]
    assert "head.fc.weight (the model has (3, 64), the weights have (5, 64))" in lines[3]


def test_to_torch_refuses_variables_of_another_model(variables):
    del variables["params"]["head"]["norm"]
    with pytest.raises(ValueError, match=r"missing.*\(2\): params/head/norm/"):
        to_torch("mambaout_tiny", variables, **MODEL)


def test_unknown_naming_names_the_allowed(variables):
    with pytest.raises(ValueError, match=r"'keras' is not known .* allowed are .*official.*timm"):
        to_torch("mambaout_tiny", variables, naming="keras", **MODEL)


def test_naming_that_cannot_name_a_layer_says_which():
    variables = model_variables(create_model("test_mambaout"), 32)
    with pytest.raises(ValueError, match="layer_scale/gamma; choose another naming"):
        to_torch("test_mambaout", variables, naming="official")


def test_leaves_without_a_layer_are_named_whole_and_keep_their_layout(rng):
    options = {"dim": 6, "depth": 1, "num_classes": 3, "image_size": (32, 48)}
    shapes = model_variables(create_model("deit_tiny_patch16_224", **options), (32, 48))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = to_torch("deit_tiny_patch16_224", variables, **options)
    assert state["pos_embed"].shape == (1, 1 + 2 * 3, 6)
    backbone = variables["params"]["backbone"]
    np.testing.assert_array_equal(state["pos_embed"], backbone["pos_embed"])
    np.testing.assert_array_equal(state["cls_token"], backbone["cls_token"])
    qkv = backbone["block_00"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(state["blocks.0.attn.qkv.weight"], qkv.T)

    # Strict in names, shapes and the leaves of this project.
    with pytest.raises(
        ValueError, match=r"pos_embed \(the model has \(1, 5, 6\), the weights have"
    ):
        from_torch("deit_tiny_patch16_224", state, **{**options, "image_size": 32})
    del state["cls_token"]
    with pytest.raises(ValueError, match=r"missing.*\(1\): cls_token"):
        from_torch("deit_tiny_patch16_224", state, **options)


def test_batch_statistics_and_their_counters_have_torch_names(rng):
    options = {"depths": (1,), "dims": (8,), "num_classes": 3}
    shapes = model_variables(create_model("fasternet_t1", **options), 32)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = to_torch("fasternet_t1", variables, **options)
    statistics = variables["batch_stats"]["backbone"]["patch_embed"]["norm"]
    np.testing.assert_array_equal(state["patch_embed.norm.running_mean"], statistics["mean"])
    np.testing.assert_array_equal(state["patch_embed.norm.running_var"], statistics["var"])
    counter = "patch_embed.norm.num_batches_tracked"
    assert (state[counter].dtype, state[counter].shape, state[counter]) == (np.int64, (), 0)
    state[counter] = np.asarray(812)  # whatever PyTorch has counted
    again = from_torch("fasternet_t1", state, **options)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    kernel = variables["params"]["backbone"]["stage_0_block_00"]["fc1"]["kernel"]
    assert state["stages.0.blocks.0.mlp.0.weight"].shape == (16, 8, 1, 1)  # a 1x1 convolution
    np.testing.assert_array_equal(state["stages.0.blocks.0.mlp.0.weight"][5, 3], kernel[3, 5])


def test_scans_of_all_directions_are_one_tensor(rng):
    options = {"depths": (1,), "dims": (16,), "state_size": 2, "num_classes": 3}
    shapes = model_variables(create_model("vmamba_v9_tiny", **options), 32)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = to_torch("vmamba_v9_tiny", variables, "official", **options)
    ssm = variables["params"]["backbone"]["stage_0_block_00"]["ss2d"]["ssm"]
    op = "layers.0.blocks.0.op"
    for k in range(4):
        path = ssm[f"path_{k}"]
        np.testing.assert_array_equal(state[f"{op}.x_proj_weight"][k], path["x_proj"]["kernel"].T)
        np.testing.assert_array_equal(state[f"{op}.dt_projs_bias"][k], path["dt_proj"]["bias"])
        rows = slice(32 * k, 32 * (k + 1))
        np.testing.assert_array_equal(state[f"{op}.A_logs"][rows], path["A_log"])
        np.testing.assert_array_equal(state[f"{op}.Ds"][rows], path["D"])
    assert state[f"{op}.dt_projs_weight"].shape == (4, 32, 1)


def test_derived_tables_are_compared_and_written_where_the_naming_has_them(rng):
    name, options = "swin_tiny_patch4_window7_224", {"depths": (2,), "dims": (8,), "heads": (2,)}
    shapes = model_variables(create_model(name, **options), 224)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state = to_torch(name, variables, "official", **options)
    index = state["layers.0.blocks.0.attn.relative_position_index"]
    # By the formula of the release, for tokens (0, 0), (0, 1), (1, 0) of a window of 7.
    assert index[0, 0] == 6 * 13 + 6
    assert (index[1, 0], index[0, 1], index[7, 0]) == (6 * 13 + 7, 6 * 13 + 5, 7 * 13 + 6)
    mask = state["layers.0.blocks.1.attn_mask"]
    assert (mask.shape, set(np.unique(mask))) == ((64, 49, 49), {-100.0, 0.0})
    assert "layers.0.blocks.0.attn_mask" not in state
    timm = to_torch(name, variables, "timm", **options)
    assert not any("index" in key or "mask" in key for key in timm)
    # Older files of timm hold the index as well.
    from_torch(name, {**timm, "layers.0.blocks.0.attn.relative_position_index": index}, **options)
    broken = {**state, "layers.0.blocks.0.attn.relative_position_index": index.T}
    with pytest.raises(ValueError, match=r"follow from its sizes.*relative_position_index"):
        from_torch(name, broken, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_neither_side_shares_memory_with_the_other(variables, order, dtype):
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype, order=order), variables)
    jax.tree.map(lambda leaf: leaf.setflags(write=False), variables)
    state = to_torch("mambaout_tiny", variables, **MODEL)
    assert {(value.dtype, value.flags.writeable) for value in state.values()} == {
        (np.dtype(dtype), True)
    }
    state = {key: np.asarray(value, order=order) for key, value in state.items()}
    read = from_torch("mambaout_tiny", state, **MODEL)
    before = jax.tree.map(np.copy, (read, variables))
    for value in state.values():
        value += 1  # as an optimiser of PyTorch does, in place
    jax.tree.map(np.testing.assert_array_equal, (read, variables), before)
    assert all(leaf.flags.writeable for leaf in jax.tree.leaves(read))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.complex64])
def test_numbers_that_are_not_floating_are_refused_on_both_sides(variables, dtype):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    state["stem.conv1.bias"] = state["stem.conv1.bias"].astype(dtype)
    name = np.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"have others: stem\.conv1\.bias \({name}\); cast"):
        from_torch("mambaout_tiny", state, **MODEL)
    variables["params"]["head"]["norm"]["scale"] = np.ones(16, dtype)
    with pytest.raises(ValueError, match=rf"have others: params/head/norm/scale \({name}\); cast"):
        to_torch("mambaout_tiny", variables, **MODEL)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "backbone."])
def test_prefixes_of_all_names_are_taken_off(variables, prefix):
    state = to_torch("mambaout_tiny", variables, **MODEL)
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    read = from_torch("mambaout_tiny", {"model": wrapped}, **MODEL)
    jax.tree.map(np.testing.assert_array_equal, read, variables)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("name", ["plainmamba_l1", "mamba2d_small"])
def test_prefix_that_belongs_to_the_names_of_a_model_stays(rng, name, prefix):
    options = {"depth": 1, "dim": 8, "image_size": 32, "num_classes": 0}
    shapes = model_variables(create_model(name, **options), 32)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = to_torch(name, variables, naming=next(iter(namings(name))), **options)
    assert all(key.startswith("backbone.") for key in state)
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    read = from_torch(name, wrapped, **options)
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_value_of_is_the_frozen_rule():
    # The goldens hold outputs for these values: a change of the rule would void them all.
    value = value_of("stem.conv1.weight", (1, 1, 3, 3))
    np.testing.assert_allclose(value[0, 0, 0], [0.1962734, -0.1090358, 0.1708369], rtol=1e-6)
