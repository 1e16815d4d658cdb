# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmenters from weights: whole, or on a backbone, of which all must be there."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mambaout_jax.heads.upernet import TORCH_NAMES
from mambaout_jax.models import create_model
from mambaout_jax.models.dense import create_segmenter
from mambaout_jax.weights.convert import backbone_from_torch, to_torch
from mambaout_jax.weights.dense import dense_to_torch, load_dense
from mambaout_jax.weights.load import save_variables

NAME = "mambaout_micro"
BODY = {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}
SMALL = {**BODY, "channels": 4, "auxiliary_channels": 4, "pool_sizes": (1, 2)}


def random_variables(model, seed=0):
    """Of the shapes of a model's, all different."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def classifier():
    return random_variables(create_model(NAME, num_classes=3, **BODY))


@pytest.fixture(scope="module")
def segmenter():
    return random_variables(create_segmenter(NAME, 5, **SMALL))


def backbone_of(variables):
    flat = flatten_dict(variables, sep="/")
    return {key: x for key, x in flat.items() if key.split("/")[1] == "backbone"}


def write(tensors, path):
    safetensors.numpy.save_file(tensors, path, {"model": NAME})
    return path


def transferred(path, **options):
    return load_dense(
        create_segmenter, path, NAME, num_classes=5, reset_head=True, **{**SMALL, **options}
    )[1]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def torch_backbone(classifier):
    """A backbone in PyTorch's names, as mmseg would save it, with the heads that it has there."""
    state = to_torch(NAME, classifier, num_classes=3, **BODY)
    inside = {f"backbone.{key}": x for key, x in state.items() if not key.startswith("head.")}
    norms = {f"backbone.outnorm{i}.{leaf}": np.ones(4, np.float32)
             for i in range(4) for leaf in ("weight", "bias")}  # fmt: skip
    return {**inside, **norms, "decode_head.conv_seg.weight": np.ones((150, 4, 1, 1), np.float32)}


def test_backbone_of_a_classifier_is_taken_and_all_else_is_fresh(
    classifier, segmenter, tmp_path, caplog
):
    path = tmp_path / "weights.safetensors"
    save_variables(classifier, path, {"model": NAME})
    with caplog.at_level(logging.INFO):
        variables = transferred(path, seed=3)
    assert_equal(backbone_of(variables), backbone_of(classifier))
    flat = flatten_dict(variables, sep="/")
    shapes = {key: np.shape(x) for key, x in flatten_dict(segmenter, sep="/").items()}
    assert {key: np.shape(x) for key, x in flat.items()} == shapes
    kernel = flat["params/head/classifier/kernel"]
    assert 0.005 < kernel.std() < 0.02  # N(0, 0.01)
    assert np.all(flat["params/neck/norm_2/scale"] == 1)
    assert "took the backbone" in caplog.text
    assert "initialised afresh: auxiliary, head, neck; left out: params/head/" in caplog.text


def test_other_wrappers_and_names_give_the_same_backbone(classifier):
    state = to_torch(NAME, classifier, num_classes=3, **BODY)
    heads = [key for key in state if key.startswith("head.")]
    inside = torch_backbone(classifier)
    beside = [key for key in inside if "norm" in key.split(".")[1] and key.split(".")[1] != "norm"]
    for tensors, left_out in (
        (state, heads),
        ({f"module.{key}": x for key, x in state.items()}, heads),
        ({key: x for key, x in state.items() if key not in heads}, []),
        (inside, [*beside, "decode_head.conv_seg.weight"]),
        ({"state_dict": inside, "meta": {}}, [*beside, "decode_head.conv_seg.weight"]),
    ):
        flat, others = backbone_from_torch(NAME, tensors, **BODY)
        assert_equal({"/".join(path): x for path, x in flat.items()}, backbone_of(classifier))
        assert sorted(others) == sorted(left_out)


@pytest.mark.slow
def test_backbone_of_a_segmenter_is_taken_alone(segmenter, tmp_path):
    save_variables(segmenter, tmp_path / "weights.safetensors", {"model": NAME})
    variables = transferred(tmp_path / "weights.safetensors")
    assert_equal(backbone_of(variables), backbone_of(segmenter))
    assert np.all(flatten_dict(variables, sep="/")["params/neck/norm_2/scale"] == 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("backbone.stages.2.blocks.0.fc1.weight"),
         r"(?s)weights\.safetensors: these weights are not those of the backbone of mambaout_micro "
         r"in timm naming.* missing.*\(1\): stages\.2\.blocks\.0\.fc1\.weight\n"),
        (lambda state: state.update({"backbone.stages.2.blocks.1.fc1.weight": np.ones(1)}),
         r"unexpected.*\(1\): stages\.2\.blocks\.1\.fc1\.weight\n"),
        (lambda state: state.update({"backbone.stages.2.blocks.0.fc1.bias": np.ones(3)}),
         r"wrong shape \(1\): stages\.2\.blocks\.0\.fc1\.bias"),
    ],
)  # fmt: skip
def test_backbone_must_be_there_as_a_whole(classifier, tmp_path, change, words):
    state = torch_backbone(classifier)
    change(state)
    with pytest.raises(ValueError, match=words):
        transferred(write(state, tmp_path / "weights.safetensors"))


def test_own_backbone_must_be_there_as_a_whole(classifier, tmp_path):
    flat = flatten_dict(classifier, sep="/")
    del flat["params/backbone/stage_2_block_00/fc1/bias"]
    save_variables(unflatten_dict(flat, sep="/"), tmp_path / "w.safetensors", {"model": NAME})
    with pytest.raises(ValueError, match=r"missing.*\(1\): params/backbone/stage_2_block_00/fc1/b"):
        transferred(tmp_path / "w.safetensors")


def test_whole_model_is_read_as_it_was_saved(segmenter, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_variables(segmenter, path, {"model": NAME})
    model, variables = load_dense(create_segmenter, path, **SMALL)
    assert model.head.num_classes == 5
    assert_equal(flatten_dict(variables, sep="/"), flatten_dict(segmenter, sep="/"))
    with pytest.raises(ValueError, match=r"the data have 7 classes and .* has 5; evaluate weights"):
        load_dense(create_segmenter, path, num_classes=7, **SMALL)


def test_classifier_is_no_whole_model(classifier, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_variables(classifier, path, {"model": NAME})
    with pytest.raises(ValueError, match=r"holds no detector or segmenter; to train one on its"):
        load_dense(create_segmenter, path, **SMALL)


def test_whole_model_is_read_from_the_names_of_mmseg(segmenter, classifier, tmp_path):
    """Names by hand for what is put on the backbone; its own are those of a classifier's file."""
    flat = flatten_dict(segmenter, sep="/")
    body = {"params": {"backbone": segmenter["params"]["backbone"],
                       "head": classifier["params"]["head"]}}  # fmt: skip
    state = {f"backbone.{key}": x
             for key, x in to_torch(NAME, body, num_classes=3, **BODY).items()
             if not key.startswith("head.")}  # fmt: skip
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
              "var": "running_var"}  # fmt: skip
    layers = {"pool_0": "psp_modules.0.1", "pool_1": "psp_modules.1.1",
              "bottleneck": "bottleneck", "fusion": "fpn_bottleneck",
              **{f"{kind}_{i}": f"{kind}_convs.{i}" for kind in ("lateral", "fpn")
                 for i in range(3)}}  # fmt: skip
    for key, value in flat.items():
        _, part, *inner, leaf = key.split("/")
        value = value.transpose(3, 2, 0, 1) if leaf == "kernel" and value.ndim == 4 else value
        if part == "neck":
            name = f"backbone.outnorm{inner[0][-1]}"
        elif part == "auxiliary":
            layer = {"conv": "convs.0.conv", "norm": "convs.0.bn", "classifier": "conv_seg"}
            name = f"auxiliary_head.{layer[inner[0]]}"
        elif inner == ["classifier"]:
            name = "decode_head.conv_seg"
        elif part == "head":
            name = f"decode_head.{layers[inner[0]]}.{ {'conv': 'conv', 'norm': 'bn'}[inner[1]] }"
        else:
            continue
        state[f"{name}.{leaves[leaf]}"] = np.ascontiguousarray(value)
    path = write(state, tmp_path / "weights.safetensors")
    _, variables = load_dense(create_segmenter, path, torch_names=TORCH_NAMES, **SMALL)
    assert_equal(flatten_dict(variables, sep="/"), flat)

    def named(naming):
        return dense_to_torch(
            create_segmenter, NAME, segmenter, naming,
            torch_names=TORCH_NAMES, num_classes=5, **SMALL,
        )  # fmt: skip

    written = named("timm, outnorm")
    counters = {key for key in written if key.endswith("num_batches_tracked")}
    assert_equal({key: x for key, x in written.items() if key not in counters}, state)
    with pytest.raises(ValueError, match=r"naming='mmseg' is not known for mambaout_micro; .*timm"):
        named("mmseg")


@pytest.mark.slow
def test_positions_are_interpolated_for_another_size(tmp_path, caplog):
    name, options = "deit_tiny_patch16_224", {"depth": 1, "dim": 12, "heads": 3}
    classifier = random_variables(create_model(name, num_classes=3, image_size=64, **options))
    path = tmp_path / "weights.safetensors"
    save_variables(classifier, path, {"model": name})
    with caplog.at_level(logging.INFO):
        model, variables = load_dense(
            create_segmenter, path, num_classes=5, reset_head=True, image_size=96, channels=4,
            auxiliary_channels=4, **options
        )  # fmt: skip
    table = classifier["params"]["backbone"]["pos_embed"]
    expected = model.backbone.resize_positions(table, (4, 4), (6, 6))
    np.testing.assert_array_equal(variables["params"]["backbone"]["pos_embed"], expected)
    assert "positions interpolated from 4 x 4 to 6 x 6 patches" in caplog.text
