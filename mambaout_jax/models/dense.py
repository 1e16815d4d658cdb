# SPDX-License-Identifier: Apache-2.0
"""Models that find what is where in an image: any backbone under a dense head."""

from typing import Any

import jax.numpy as jnp

from mambaout_jax.heads.neck import make_neck
from mambaout_jax.heads.upernet import AuxiliaryHead, Segmenter, UperNetHead
from mambaout_jax.models import create_backbone

# Options of `create_segmenter` that are no options of `create_model`.
SEGMENTER_OPTIONS = ("channels", "pool_sizes", "dropout", "auxiliary_channels")


def create_segmenter(name: str, num_classes: int = 150, **options: Any) -> Segmenter:
    """Makes UperNet on a backbone: NHWC images to a class for every pixel.

    Args:
        name: one of `list_models()` whose maps `make_neck` takes.
        num_classes: classes of pixels.
        **options: `channels`, `pool_sizes` and `dropout` of `heads.upernet.UperNetHead`,
            `auxiliary_channels` of its auxiliary head, and those of `create_model`.

    Raises:
        ValueError: no such model, an option has a value that is not allowed, or `make_neck` does
            not take the maps.
        TypeError: an option that is not a field of the family.
    """
    ours = {key: options.pop(key) for key in SEGMENTER_OPTIONS if key in options}
    backbone = create_backbone(name, **options)
    dtype = options.get("dtype", jnp.float32)
    second = {"channels": ours.pop("auxiliary_channels", AuxiliaryHead.channels)}
    if "dropout" in ours:
        second["dropout"] = ours["dropout"]
    return Segmenter(
        backbone=backbone,
        neck=make_neck(backbone, dtype),
        head=UperNetHead(num_classes, dtype=dtype, **ours),
        auxiliary=AuxiliaryHead(num_classes, dtype=dtype, **second),
    )
