# SPDX-License-Identifier: Apache-2.0
"""The contract between model families and what uses them: images in, stage maps out.

A backbone is a linen module with

    channels: tuple[int, ...]     of each map, known before initialisation
    strides: tuple[int, ...]      image pixels per map pixel
    features(images, train)       -> Features
    __call__(images, train)       -> Features.maps

Its parameters never depend on who consumes the maps: norms of a consumer live with the consumer.
A classifier is a backbone and a head, hence ``{"backbone": ..., "head": ...}``, and moving a
backbone to another task means taking one key (`subtree`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    Attributes:
        maps: one (B, H, W, C) array per stage, finest first.
        token: (B, C) class token, None for families without one.
    """

    maps: tuple[Float[Array, "B _ _ _"], ...]
    token: Float[Array, "B C"] | None = None


class Variant(NamedTuple):
    """One row of a family's table of sizes.

    Attributes:
        backbone: fields of the family's backbone.
        head: fields of the family's head.
        parameters: with 1000 classes.
        macs: multiply-accumulates of one image of 224 pixels, with 1000 classes.
        drop_path: rate of the last block in the published training, 0 where none is published.
        image_size: side in pixels that the published weights were trained at.
    """

    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    parameters: int
    macs: int
    drop_path: float = 0.0
    image_size: int = 224


class Classifier(nn.Module):
    """Backbone and head; images (B, H, W, in_chans) to logits (B, num_classes), at least float32.

    Attributes:
        backbone: maps images to `Features`.
        head: maps `Features` to logits.
        in_chans: image channels.
    """

    backbone: nn.Module
    head: nn.Module
    in_chans: int = 3

    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[Array, "B _"]:
        """Classifies images.

        Raises:
            ValueError: the images have another number of channels than `in_chans`.
        """
        shape = jnp.shape(images)
        if shape[-1] != self.in_chans:
            raise ValueError(
                f"the images have shape {shape} (B, H, W, C), but the model was made for "
                f"{self.in_chans} channels; pass in_chans={shape[-1]} to create_model, or "
                "transpose the images to channels last"
            )
        logits = self.head(self.backbone.features(images, train), train)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def subtree(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The variables of one submodule: `{"params": {name: x}}` to `{"params": x}`.

    Raises:
        KeyError: no collection holds `name`.
    """
    found = {collection: tree[name] for collection, tree in variables.items() if name in tree}
    if not found:
        inside = sorted({key for tree in variables.values() for key in tree})
        raise KeyError(f"no submodule {name!r} in these variables; they hold {inside}")
    return found
