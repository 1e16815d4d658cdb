# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN as a whole; its parts have the tests of their files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.variables import randomised
from support.without_kernels import leave_kernels_out

from mambaout_jax.heads import mask_rcnn
from mambaout_jax.heads.boxes import ROI_STDS, clip, decode
from mambaout_jax.kernels.dispatch import _plain
from mambaout_jax.models import create_detector

SMALL = {
    "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "conv_implementation": "lax",
    "num_classes": 3, "channels": 16, "box_hidden": 32, "proposals": 40, "detections": 12,
}  # fmt: skip
SHAPES = np.array(((64, 96), (50, 70)), np.int32)


def make(**options):
    return create_detector("mambaout_tiny", **{**SMALL, **options})


@pytest.fixture(scope="module")
def found():
    """What a detector finds in two images, what its parts say meanwhile, and its variables."""
    model = make()
    images = np.random.default_rng(0).standard_normal((2, 64, 96, 3), np.float32)
    variables = randomised(model, images)
    wanted = {("Detector", name) for name in ("pyramid", "propose", "classify")}
    wanted.add(("TransposedConv", "__call__"))
    run = jax.jit(
        lambda variables: model.apply(
            variables,
            images,
            SHAPES,
            mutable=["intermediates"],
            capture_intermediates=lambda module, name: (type(module).__name__, name) in wanted,
        )
    )
    objects, state = run(variables)
    return jax.device_get((objects, state["intermediates"], variables["params"]))


@pytest.mark.slow
def test_objects_are_proposals_with_classes_boxes_and_masks(found):
    objects, said, params = found
    (maps,), ((boxes, valid),), ((logits, deltas),) = (
        said[name] for name in ("pyramid", "propose", "classify")
    )
    assert [x.shape for x in maps] == [
        (2, 16, 24, 16), (2, 8, 12, 16), (2, 4, 6, 16), (2, 2, 3, 16), (2, 1, 2, 16),
    ]  # fmt: skip
    assert (boxes.shape, logits.shape, deltas.shape) == ((2, 40, 4), (2, 40, 4), (2, 40, 3, 4))
    odds = np.exp(logits.astype(float))
    probabilities = odds[..., :3] / odds.sum(-1, keepdims=True)
    decoded = decode(np.repeat(boxes[:, :, None], 3, 2), deltas, ROI_STDS)
    decoded = np.asarray(clip(decoded, SHAPES[:, None]))
    features = np.maximum(said["mask_head"]["upsample"]["__call__"][0], 0).astype(float)
    features = features.reshape(2, 12, 28, 28, 16)
    predictor = params["mask_head"]["predictor"]
    assert (objects["labels"] >= 0).sum() > 12
    for image, row in np.argwhere(objects["labels"] >= 0):
        label, score = objects["labels"][image, row], objects["scores"][image, row]
        assert score > 0.05
        of_label = probabilities[image, :, label]
        sources = np.flatnonzero(valid[image] & np.isclose(of_label, score, rtol=1e-5))
        distances = np.abs(decoded[image, sources, label] - objects["boxes"][image, row])
        assert distances.max(axis=-1).min() < 1e-3
        kernel, bias = predictor["kernel"][0, 0, :, label], predictor["bias"][label]
        expected = 1 / (1 + np.exp(-features[image, row] @ kernel - bias))
        np.testing.assert_allclose(objects["masks"][image, row], expected, atol=1e-5)


@pytest.mark.slow
def test_objects_are_ordered_inside_their_image_and_padded(found):
    objects, *_ = found
    scores, labels = objects["scores"], objects["labels"]
    assert labels.dtype == np.int32
    assert (np.diff(scores, axis=1) <= 0).all()
    empty = labels < 0
    np.testing.assert_array_equal(scores == 0, empty)
    for name in ("boxes", "masks"):
        np.testing.assert_array_equal(objects[name][empty], 0)
    limits = SHAPES[:, None, [1, 0, 1, 0]]
    assert ((objects["boxes"] >= 0) & (objects["boxes"] <= limits)).all()
    assert (objects["boxes"][0] > limits[1]).any()  # the other image is larger


@pytest.mark.parametrize(
    ("train", "plain", "dtype"), [(True, True, "float32"), (False, False, "bfloat16")]
)
def test_modes_and_dtypes(train, plain, dtype, monkeypatch):
    asked, regions, plains = [], [], []

    def proposals(*args):
        asked.append(args[3:])
        return jnp.zeros((2, 40, 4)), jnp.zeros((2, 40), bool)

    def roi_align(maps, boxes, levels, points, strides):
        regions.append((len(maps), {x.dtype.name for x in maps}, levels, points, strides))
        plains.append(_plain.value)
        return jnp.zeros((*boxes.shape[:2], points, points, 16), maps[0].dtype)

    monkeypatch.setattr(mask_rcnn, "proposals", proposals)
    monkeypatch.setattr(mask_rcnn, "roi_align", roi_align)
    model = make(dtype=jnp.dtype(dtype), plain=plain)
    outputs, variables = jax.eval_shape(
        lambda key: model.init_with_output(key, jnp.zeros((2, 64, 96, 3)), train=train),
        {"params": jax.random.key(0), "dropout": jax.random.key(0)},
    )
    assert {name: x.dtype.name for name, x in outputs.items()} == {
        "boxes": "float32", "scores": "float32", "labels": "int32", "masks": "float32",
    }  # fmt: skip
    assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float32"}
    # Without shapes of images there is no padding.
    ((image_shapes, before, after),) = asked
    np.testing.assert_array_equal(image_shapes, [[64, 96], [64, 96]])
    assert (before, after) == (2000 if train else 1000, 40)
    assert regions == [(4, {dtype}, None, points, (4, 8, 16, 32)) for points in (7, 14)]
    assert plains == [plain, plain]


@pytest.mark.slow
def test_initial_values_are_mmdets(monkeypatch):
    leave_kernels_out(monkeypatch)
    model = make(num_classes=40, channels=32, box_hidden=64)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    layers = {
        "/".join(path[:-1]): x
        for path, x in flatten_dict(params).items()
        if path[0] not in ("backbone", "neck") and path[-1] == "kernel"
    }
    normal = {
        **dict.fromkeys(("rpn/hidden", "rpn/score", "rpn/delta", "roi_head/classifier"), 0.01),
        "roi_head/delta": 0.001,
        **{f"mask_head/conv_{i}": (2 / (9 * 32)) ** 0.5 for i in range(4)},
        "mask_head/upsample": (2 / (4 * 32)) ** 0.5,
        "mask_head/predictor": (2 / 40) ** 0.5,
    }
    for name, std in normal.items():
        np.testing.assert_allclose(layers.pop(name).std(), std, rtol=0.15, err_msg=name)
    for name, kernel in layers.items():  # Xavier's
        *sides, inputs, outputs = kernel.shape
        bound = np.sqrt(6 / (np.prod(sides) * (inputs + outputs)))
        assert 0.95 * bound < np.abs(kernel).max() <= bound, name
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1, err_msg=name)
    assert len(layers) == 4 + 4 + 2
    for path, x in flatten_dict(params).items():
        assert path[-1] != "bias" or path[0] == "backbone" or not x.any(), path
