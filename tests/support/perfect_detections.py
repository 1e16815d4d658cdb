# SPDX-License-Identifier: Apache-2.0
"""The partial result of a detector that finds everything."""

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.heads.targets import mask_targets

targets = jax.jit(mask_targets)


def perfect(source, places):
    """The partial result of a batch in which all objects are found; at places of -1 is nothing."""
    rows = 8
    batch = {
        "seen": np.asarray(places),
        "image_id": np.maximum(places, 0),
        "box": np.zeros((len(places), rows, 4)),
        "score": np.zeros((len(places), rows)),
        "label": np.full((len(places), rows), -1),
        "mask": np.zeros((len(places), rows, 28, 28), np.uint8),
    }
    for i, place in enumerate(places):
        example = source[place] if place >= 0 else {"labels": ()}
        count = len(example["labels"])
        if count:
            batch["box"][i, :count], batch["label"][i, :count] = example["boxes"], example["labels"]
            batch["score"][i, :count] = 0.9 - 0.05 * np.arange(count)
            masks = np.zeros((1, rows, 80, 80), bool)  # one shape for all: one program
            height, width = example["masks"].shape[1:]
            masks[0, :count, :height, :width] = example["masks"]
            boxes = jnp.asarray(batch["box"][i : i + 1], jnp.float32)
            packed = jnp.asarray(np.packbits(masks, axis=-1))
            batch["mask"][i] = 255 * np.asarray(targets(packed, boxes, jnp.arange(rows)[None]))[0]
    return batch
