# SPDX-License-Identifier: Apache-2.0
"""Models that find what is where in an image: any backbone under a dense head."""

from typing import Any

import jax.numpy as jnp

from mambaout_jax.backbone import Backbone
from mambaout_jax.heads.mask_rcnn import Detector
from mambaout_jax.heads.neck import make_neck
from mambaout_jax.heads.upernet import AuxiliaryHead, Segmenter, UperNetHead
from mambaout_jax.models.registry import create_backbone, head_options

# Options of `create_detector` and of `create_segmenter` that are no options of `create_model`.
DETECTOR_OPTIONS = ("channels", "box_hidden", "proposals", "detections")
SEGMENTER_OPTIONS = ("channels", "pool_sizes", "dropout", "auxiliary_channels")


def create_detector(name: str, num_classes: int = 80, **options: Any) -> Detector:
    """Makes Mask R-CNN on a backbone: NHWC images to objects, their classes, boxes and masks.

    Args:
        name: one of `list_models()` whose maps `make_neck` takes.
        num_classes: classes of objects, without background.
        **options: `channels`, `box_hidden`, `proposals` and `detections` of
            `heads.mask_rcnn.Detector`, and those of `create_backbone`.

    Raises:
        ValueError: no such model, an option has a value that is not allowed, or `make_neck` does
            not take the maps.
        TypeError: an option that is not a field of the family's backbone.
    """
    ours = {key: options.pop(key) for key in DETECTOR_OPTIONS if key in options}
    backbone = _backbone(name, options)
    dtype = options.get("dtype", jnp.float32)
    return Detector(
        backbone=backbone,
        neck=make_neck(backbone, dtype),
        num_classes=num_classes,
        dtype=dtype,
        **ours,
    )


def create_segmenter(name: str, num_classes: int = 150, **options: Any) -> Segmenter:
    """Makes UperNet on a backbone: NHWC images to a class for every pixel.

    Args:
        name: one of `list_models()` whose maps `make_neck` takes.
        num_classes: classes of pixels.
        **options: `channels`, `pool_sizes` and `dropout` of `heads.upernet.UperNetHead`,
            `auxiliary_channels` of its auxiliary head, and those of `create_backbone`.

    Raises:
        ValueError: no such model, an option has a value that is not allowed, or `make_neck` does
            not take the maps.
        TypeError: an option that is not a field of the family's backbone.
    """
    ours = {key: options.pop(key) for key in SEGMENTER_OPTIONS if key in options}
    backbone = _backbone(name, options)
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


def _backbone(name: str, options: dict[str, Any]) -> Backbone:
    """`create_backbone`, but what only a classifier would read is an error."""
    unread = sorted(head_options(name, options))
    if unread:
        raise TypeError(
            f"{unread} are fields of the head with which {name} classifies, and detectors and "
            "segmenters have none; leave them out"
        )
    return create_backbone(name, **options)
