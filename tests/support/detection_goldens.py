# SPDX-License-Identifier: Apache-2.0
"""What mmdet made of three images in training: objects in padded rows, and how it sampled."""

import jax.numpy as jnp
import numpy as np
from support.dense_goldens import load_dense

IMAGES, ROWS = 3, 5  # one row more than the most objects
SAMPLED = {"anchors": (256, 128), "regions": (64, 16)}  # and at most how many of them positive


def load_objects():
    """Arrays and notes of the golden, its state dict, and the objects: boxes, labels, masks."""
    arrays, meta, state_dict = load_dense("maskrcnn_loss")
    height, width = meta["padded_image"]
    boxes = np.zeros((IMAGES, ROWS, 4), np.float32)
    labels = np.full((IMAGES, ROWS), -1, np.int32)
    masks = np.zeros((IMAGES, ROWS, height, width // 8), np.uint8)
    for image in range(IMAGES):
        (rows,) = np.nonzero(arrays["gt_image"] == image)
        boxes[image, : len(rows)] = arrays["gt_boxes"][rows]
        labels[image, : len(rows)] = arrays["gt_labels"][rows]
        masks[image, : len(rows)] = arrays["gt_mask_bits"][rows]
    objects = {"boxes": boxes, "labels": labels, "masks": masks}
    return arrays, meta, state_dict, {key: jnp.asarray(array) for key, array in objects.items()}


def spaced_draw(stage, matched):
    """Priorities by which candidates are taken as the golden's sampler took them: evenly spaced."""
    number, most = SAMPLED[stage]
    priority = np.zeros(matched.shape, np.float32)
    for row, of_image in zip(priority, np.asarray(matched), strict=True):
        left = number
        for kind, limit in ((of_image >= 0, most), (of_image == -1, number)):
            (candidates,) = np.nonzero(kind)
            wanted = min(left, limit)
            if len(candidates) > wanted:
                candidates = candidates[np.arange(wanted) * len(candidates) // wanted]
            row[candidates] = 0.5
            left -= len(candidates)
    return jnp.asarray(priority)
