# SPDX-License-Identifier: Apache-2.0
"""The mask head, and masks put back into an image, against mmdet's."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens.fill import input_of
from support.dense_goldens import load_dense

from mambaout_jax.heads.mask import MaskHead, MaskPredictor, paste_mask, paste_masks


def mask_params(state):
    def layer(name, axes):
        return {
            "kernel": state[f"{name}.weight"].transpose(axes),
            "bias": state[f"{name}.bias"],
        }

    conv, transposed = (2, 3, 1, 0), (2, 3, 0, 1)
    return {
        **{f"conv_{i}": layer(f"mask_head.{i}.0", conv) for i in range(4)},
        "upsample": layer("mask_predictor.conv5_mask", transposed),
        "predictor": layer("mask_predictor.mask_fcn_logits", conv),
    }


def test_logits_are_mmdets_of_all_classes_and_of_one():
    arrays, meta, state = load_dense("roi_heads")
    x = jnp.asarray(input_of((3, 256, 14, 14), 1).transpose(0, 2, 3, 1))
    variables, head = {"params": mask_params(state)}, MaskHead(80)
    labels = jnp.array((16, 0, 72))
    logits, own = jax.jit(
        lambda variables: (head.apply(variables, x), head.apply(variables, x, labels))
    )(variables)
    limit = 5e-5 * meta["stages"]["mask"]["std"]
    assert np.abs(logits.transpose(0, 3, 1, 2)[:, ::8] - arrays["mask"]).max() <= limit
    assert own.shape == (3, 28, 28)
    assert np.abs(own - arrays["mask"][np.arange(3), np.asarray(labels) // 8]).max() <= limit


def test_logits_are_at_least_float32_and_count_for_all_classes():
    x, labels = jnp.zeros((2, 3, 3, 4)), jnp.array((1, 0))
    head = MaskHead(5, 4, jnp.bfloat16)
    logits, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), x, labels)
    assert (logits.dtype, logits.shape) == (jnp.float32, (2, 6, 6))
    assert MaskPredictor(5, None).macs((x, labels), jnp.zeros(logits.shape)) == 2 * 9 * 4 * 5


def test_pasted_masks_are_mmdets():
    arrays, meta, _ = load_dense("masks")
    size = tuple(meta["image_shape"])
    probabilities, boxes = arrays["prob"][:, 0], arrays["boxes"]
    expected = np.unpackbits(arrays["mmdet_bits"], axis=-1)[:, :, : size[1]].astype(bool)
    soft = np.zeros((len(boxes), *size), np.float32)
    for image, probability, box in zip(soft, probabilities, boxes, strict=True):
        (rows, columns), values = paste_mask(probability, box, size)
        image[rows, columns] = values
    np.testing.assert_allclose(soft[:2], arrays["mmdet_soft"], atol=1e-5)
    clear = np.abs(soft - 0.5) > 1e-4
    pasted = paste_masks(probabilities, boxes, size)
    np.testing.assert_array_equal(pasted[clear], expected[clear])
    assert clear.mean() > 0.999


def test_masks_of_empty_and_of_outer_boxes_are_empty():
    ones = np.ones((4, 28, 28), np.float32)
    boxes = np.array(((0, 0, 0, 0), (5, 5, 5, 9), (-90, 2, -40, 9), (3, 70, 9, 80)), np.float32)
    assert not paste_masks(ones, boxes, (16, 12)).any()
    inside = paste_masks(ones[:1], np.array(((2, 3, 7, 9),), np.float32), (16, 12))[0]
    expected = np.zeros((16, 12), bool)
    expected[3:9, 2:7] = True
    np.testing.assert_array_equal(inside, expected)
