# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN under mmdet's names: its heads, the backbones inside it, and what is strict."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from support.dense_goldens import load_dense as load_golden
from support.without_kernels import leave_kernels_out

from mambaout_jax.heads.mask_rcnn import TORCH_NAMES
from mambaout_jax.models import create_detector, create_model
from mambaout_jax.weights.convert import to_torch
from mambaout_jax.weights.dense import dense_to_torch, load_dense
from mambaout_jax.weights.torch_names import torch_tensors

BODY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
HEADS = {"channels": 4, "box_hidden": 6, "proposals": 8, "detections": 3}
# Options of a small backbone, and what its authors call the norm of each map.
BACKBONES = {
    "mambaout_tiny": (BODY, "norm"),
    "convnext_tiny": (BODY, "norm"),
    "vmamba_v9_tiny": (BODY, "outnorm"),
    "swin_tiny_patch4_window7_224": (
        {**BODY, "depths": (2, 1, 1, 1), "heads": (2, 2, 2, 2)}, "norm",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quickly_traced(monkeypatch):
    leave_kernels_out(monkeypatch)


def random_variables(model):
    """Of the shapes of a model's, all different."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_detectors_go_both_ways_under_mmdets_names(name, tmp_path):
    body, norm = BACKBONES[name]
    options = {**body, **HEADS}
    variables = random_variables(create_detector(name, 5, **options))
    state = dense_to_torch(
        create_detector, name, variables, f"official, {norm}",
        torch_names=TORCH_NAMES, num_classes=5, **options,
    )  # fmt: skip
    path = tmp_path / "epoch_12.safetensors"
    safetensors.numpy.save_file(state, path)
    _, read = load_dense(create_detector, path, name, torch_names=TORCH_NAMES, **options)
    jax.tree.map(np.testing.assert_array_equal, read, variables)

    assert_read_strictly(state, path, name, options)

    inside = {key.removeprefix("backbone."): x for key, x in state.items() if "backbone." in key}
    for i in range(4):
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            value = variables["params"]["neck"][f"norm_{i}"][ours]
            np.testing.assert_array_equal(inside.pop(f"{norm}{i}.{theirs}"), value)
    # All else has the names of a classifier, of which only the head and masks of one size are left.
    classifier = random_variables(create_model(name, num_classes=5, **body))
    classifier["params"]["backbone"] = variables["params"]["backbone"]
    expected = to_torch(name, classifier, "official", num_classes=5, **body)
    for key, value in inside.items():
        np.testing.assert_array_equal(value, expected.pop(key), err_msg=key)
    assert all(key.split(".")[0] in ("norm", "head", "classifier") or key.endswith("attn_mask")
               for key in expected)  # fmt: skip


def assert_read_strictly(state, path, name, options):
    left = {key: x for key, x in state.items() if key != "rpn_head.rpn_cls.bias"}
    left["roi_head.bbox_head.fc_reg.bias"] = np.zeros(16, np.float32)
    left["roi_head.mask_head.convs.4.conv.bias"] = np.zeros(4, np.float32)
    safetensors.numpy.save_file(left, path)
    words = (
        r"(?s)in official, \w+ naming.*missing.*\(1\): rpn_head\.rpn_cls\.bias.*"
        r"unexpected.*\(1\): roi_head\.mask_head\.convs\.4\.conv\.bias.*"
        r"wrong shape \(1\): roi_head\.bbox_head\.fc_reg\.bias"
    )
    with pytest.raises(ValueError, match=words):
        load_dense(create_detector, path, name, torch_names=TORCH_NAMES, **options)


def test_names_and_shapes_of_the_heads_are_mmdets():
    model = create_detector("mambaout_tiny", **BODY)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    heads = {
        path: x for path, x in flatten_dict(shapes).items() if path[1] not in ("backbone", "neck")
    }
    named = {key: tensor.torch_shape for key, tensor in torch_tensors(TORCH_NAMES, heads).items()}
    pyramid = {key: named.pop(key) for key in list(named) if key.startswith("neck.")}
    _, meta, _ = load_golden("maskrcnn_loss")
    assert named == {key: tuple(shape) for key, shape in meta["params"]}
    # torchvision's names of the pyramid, as the golden says how mmdet has them.
    _, meta, _ = load_golden("fpn")
    expected = {
        key.replace("inner_blocks", "neck.lateral_convs")
        .replace("layer_blocks", "neck.fpn_convs")
        .replace(".0.weight", ".conv.weight")
        .replace(".0.bias", ".conv.bias")
        for key, _ in meta["params"]
    }
    assert set(pyramid) == expected


def test_layouts_of_the_heads_are_torchs(rng):
    kernels = {
        ("params", "roi_head", "fc1", "kernel"): rng.standard_normal((49 * 3, 5)),
        ("params", "mask_head", "upsample", "kernel"): rng.standard_normal((2, 2, 3, 5)),
    }
    tensors = torch_tensors(TORCH_NAMES, kernels)
    first = tensors["roi_head.bbox_head.shared_fcs.0.weight"]
    up = tensors["roi_head.mask_head.upsample.weight"]
    for tensor in (first, up):
        (value,) = (kernels[path] for path in tensor.paths)
        np.testing.assert_array_equal(tensor.from_torch(tensor.to_torch([value]))[0], value)
    pixels = kernels[first.paths[0]].reshape(7, 7, 3, 5)  # y, x, C, F
    weight = first.to_torch([kernels[first.paths[0]]])
    np.testing.assert_array_equal(weight.reshape(5, 3, 7, 7), pixels.transpose(3, 2, 0, 1))
    weight = up.to_torch([kernels[up.paths[0]]])
    np.testing.assert_array_equal(weight, kernels[up.paths[0]].transpose(2, 3, 0, 1))
