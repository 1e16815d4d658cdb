# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the comparison of dense models, with stand-ins for PyTorch itself."""

import importlib.util
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.benchmarks.dense_peers import TheirDetector, TheirSegmenter, missing_packages
from mambaout_jax.heads import mask_rcnn, upernet
from mambaout_jax.models.dense import create_detector, create_segmenter
from mambaout_jax.weights.convert import Target, write_state
from mambaout_jax.weights.dense import dense_namings

# Names of torchvision 0.29.1 and of transformers 5.23.0, as their models print them.
TORCHVISION = (
    *(f"backbone.fpn.{part}_blocks.{i}.0" for part in ("inner", "layer") for i in range(4)),
    *(f"rpn.head.{name}" for name in ("conv.0.0", "cls_logits", "bbox_pred")),
    *(f"roi_heads.box_head.fc{i}" for i in (6, 7)),
    *(f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")),
    *(f"roi_heads.mask_head.{i}.0" for i in range(4)),
    *(f"roi_heads.mask_predictor.{name}" for name in ("conv5_mask", "mask_fcn_logits")),
)
CONVS = (
    *(f"head.psp_modules.{i}.1" for i in range(4)),
    *(f"head.{part}_convs.{i}" for part in ("lateral", "fpn") for i in range(3)),
    *(f"head.{name}" for name in ("bottleneck", "fpn_bottleneck")),
    "auxiliary.convs.0",
)
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def written(create, name, torch_names):
    """mm's names of this library's model, and zeros of their shapes."""
    model = create("test_mambaout", 80, image_size=64)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    target = Target(name, flax.traverse_util.flatten_dict(shapes),
                    dense_namings("test_mambaout", torch_names), lambda _: {})  # fmt: skip
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    return write_state(target, zeros, "timm, norm")


def peer(kind, state):
    """A side that never met PyTorch; its model has these tensors."""
    side = object.__new__(kind)
    tensors = {
        key: types.SimpleNamespace(cpu=lambda x=x: types.SimpleNamespace(numpy=lambda: x))
        for key, x in state.items()
    }
    side._model = types.SimpleNamespace(state_dict=lambda: tensors)
    return side


def body(prefix):
    """timm's names of the backbone, and those of the layer norms after it."""
    ours = written(create_segmenter, "UperNet", upernet.TORCH_NAMES)
    for key in ours:
        if key.startswith("backbone.norm"):
            yield f"{prefix}norms.{key.removeprefix('backbone.norm')}"
        elif key.startswith("backbone."):
            yield f"{prefix}body.{key.removeprefix('backbone.')}"


@pytest.mark.slow
def test_torchvisions_weights_come_under_mmdetections_names():
    names = [f"{name}.{kind}" for name in TORCHVISION for kind in ("weight", "bias")]
    state = dict.fromkeys((*names, *body("backbone.maps.")), np.zeros((324, 1), np.float32))
    wanted = written(create_detector, "Mask R-CNN", mask_rcnn.TORCH_NAMES)
    assert peer(TheirDetector, state).state_dict().keys() == wanted.keys()


@pytest.mark.slow
def test_transformers_weights_come_under_mmsegmentations_names():
    names = [
        *(f"{name}.conv.weight" for name in CONVS),
        *(f"{name}.batch_norm.{kind}" for name in CONVS for kind in STATISTICS),
        *(f"{side}.classifier.{kind}" for side in ("head", "auxiliary") for kind in STATISTICS[:2]),
    ]
    state = dict.fromkeys((*names, *body("maps.")), np.zeros(2, np.float32))
    wanted = written(create_segmenter, "UperNet", upernet.TORCH_NAMES)
    assert peer(TheirSegmenter, state).state_dict().keys() == wanted.keys()


def test_the_background_moves_from_the_first_row_to_the_last():
    heads = "roi_heads."
    state = peer(
        TheirDetector,
        {
            f"{heads}box_predictor.cls_score.bias": np.arange(3),
            f"{heads}box_predictor.bbox_pred.bias": np.arange(12),
            f"{heads}mask_predictor.mask_fcn_logits.bias": np.arange(3),
        },
    ).state_dict()
    assert state["roi_head.bbox_head.fc_cls.bias"].tolist() == [1, 2, 0]
    assert state["roi_head.bbox_head.fc_reg.bias"].tolist() == list(range(4, 12))
    assert state["roi_head.mask_head.conv_logits.bias"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("task", "other"), [("detection", "torchvision"), ("segmentation", "transformers")]
)
def test_packages_that_are_missing_are_named(monkeypatch, task, other):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == other else name)
    assert missing_packages(task) == (other,)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert missing_packages(task) == ()
