# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN: objects, their classes, boxes and masks (He et al., ICCV 2017, arXiv 1703.06870).

As mmdet 3.3.0's `mask-rcnn_r50_fpn` around any backbone. All shapes are static: rows that hold
nothing are padded.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mambaout_jax.backbone import Backbone
from mambaout_jax.heads.fpn import FPN
from mambaout_jax.heads.mask import MaskHead
from mambaout_jax.heads.neck import STRIDES, PyramidNeck, SimplePyramidNeck
from mambaout_jax.heads.roi import BoxHead, detections
from mambaout_jax.heads.rpn import RPN, AnchorPredictions, anchors, proposals
from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.kernels.roi_align import roi_align

BOX_POINTS, MASK_POINTS = 7, 14  # a side, of what the heads read of a region

# mmdetection's names of what is put on a backbone; see `weights.torch_names`.
TORCH_NAMES = (
    (r"fpn/lateral_(\d)", r"neck.lateral_convs.\1.conv"),
    (r"fpn/output_(\d)", r"neck.fpn_convs.\1.conv"),
    (r"rpn/hidden", r"rpn_head.rpn_conv"),
    (r"rpn/score", r"rpn_head.rpn_cls"),
    (r"rpn/delta", r"rpn_head.rpn_reg"),
    (r"roi_head/fc1", r"roi_head.bbox_head.shared_fcs.0", "region"),
    (r"roi_head/fc2", r"roi_head.bbox_head.shared_fcs.1"),
    (r"roi_head/classifier", r"roi_head.bbox_head.fc_cls"),
    (r"roi_head/delta", r"roi_head.bbox_head.fc_reg"),
    (r"mask_head/conv_(\d)", r"roi_head.mask_head.convs.\1.conv"),
    (r"mask_head/upsample", r"roi_head.mask_head.upsample", "transposed"),
    (r"mask_head/predictor", r"roi_head.mask_head.conv_logits"),
)

_CANDIDATES = {True: 2000, False: 1000}  # of each level, while training or not


class Detector(nn.Module):
    """Images to objects. Its parts are methods, with which it is trained: see `__call__`.

    Attributes:
        backbone: maps images to maps.
        neck: maps those to four of strides 4, 8, 16 and 32.
        num_classes: K; class K, the last, is background.
        channels: of the feature pyramid and of what reads it.
        box_hidden: width of the hidden layers that read a box.
        proposals: regions that are looked at in an image.
        detections: objects that are found in an image, at most.
        dtype: dtype of the computation; float32 means at least float32. Boxes, scores and logits
            are at least float32 in any case.
    """

    backbone: Backbone
    neck: PyramidNeck | SimplePyramidNeck
    num_classes: int = 80
    channels: int = 256
    box_hidden: int = 1024
    proposals: int = 1000
    detections: int = 100
    dtype: Dtype = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps P2 to P6."""
        return (*STRIDES, 2 * STRIDES[-1])

    def setup(self) -> None:
        self.fpn = FPN(self.channels, self.dtype)
        self.rpn = RPN(self.channels, self.dtype)
        self.roi_head = BoxHead(self.num_classes, self.box_hidden, self.dtype)
        self.mask_head = MaskHead(self.num_classes, self.channels, self.dtype)

    def __call__(
        self,
        images: Float[ArrayLike, "B H W I"],
        image_shapes: Int[ArrayLike, "B 2"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """Finds objects.

        Args:
            images: padded on the right and below.
            image_shapes: int32 (H, W) of each image without its padding; None: there is none.
            train: whether the backbone drops paths.

        Returns:
            By falling score, R of each image:
                boxes   (B, R, 4) in pixels of the image, 0 in rows without an object
                scores  (B, R) probabilities, 0 there
                labels  (B, R) int32, -1 there
                masks   (B, R, 28, 28) probabilities of the label's class inside the box, 0 there

        Raises:
            ValueError: as `Backbone.features`.
        """
        shapes = _whole(images) if image_shapes is None else image_shapes
        maps = self.pyramid(images, train)
        boxes, valid = self.propose(self.rpn_outputs(maps), shapes, train)
        logits, deltas = self.classify(maps, boxes)
        found = detections(boxes, valid, logits, deltas, shapes, self.detections)
        present = found.labels >= 0
        masks = nn.sigmoid(self.segment(maps, found.boxes, jnp.maximum(found.labels, 0)))
        masks = jnp.where(present[..., None, None], masks, 0)
        return {**found._asdict(), "masks": masks}

    def pyramid(
        self, images: Float[ArrayLike, "B H W I"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ F"], ...]:
        """The maps P2 to P6, of strides 4, 8, 16, 32 and 64."""
        features = self.backbone.features(images, train)
        with self.backbone.implementations():
            return self.fpn(self.neck(features.maps))

    def rpn_outputs(self, maps: tuple[Float[Array, "B _ _ F"], ...]) -> AnchorPredictions:
        """What the region proposal network says of each anchor of the maps P2 to P6."""
        with self.backbone.implementations():
            scores, deltas = self.rpn(maps)
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        return AnchorPredictions(scores, deltas, anchors(sizes, self.strides))

    def propose(
        self, outputs: AnchorPredictions, image_shapes: Int[ArrayLike, "B 2"], train: bool = False
    ) -> tuple[Float[Array, "B R 4"], Bool[Array, "B R"]]:
        """Boxes, 0 where there is none, and which rows hold one; see `heads.rpn.proposals`."""
        return proposals(*outputs, image_shapes, _CANDIDATES[train], self.proposals)

    def classify(
        self, maps: tuple[Float[Array, "B _ _ F"], ...], boxes: Float[Array, "B R 4"]
    ) -> tuple[Float[Array, "B R _"], Float[Array, "B R K 4"]]:
        """Logits of K + 1 classes, background last, and deltas for each of K, of boxes."""
        with self.backbone.implementations():
            return self.roi_head(self._regions(maps, boxes, BOX_POINTS))

    def segment(
        self,
        maps: tuple[Float[Array, "B _ _ F"], ...],
        boxes: Float[Array, "B R 4"],
        labels: Int[Array, "B R"] | None = None,
    ) -> Float[Array, "B R _ _ *K"]:
        """Logits of the masks in boxes, (B, R, 28, 28, K), or (B, R, 28, 28) of labels 0 … K - 1.

        With labels no other class is computed.
        """
        with self.backbone.implementations():
            regions = self._regions(maps, boxes, MASK_POINTS)  # (B, R, 14, 14, F)
            labels = None if labels is None else labels.reshape(-1)
            logits = self.mask_head(regions.reshape(-1, *regions.shape[2:]), labels)
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])

    def _regions(
        self, maps: tuple[Float[Array, "B _ _ F"], ...], boxes: Float[Array, "B R 4"], points: int
    ) -> Float[Array, "B R P P F"]:
        return roi_align(maps[: len(STRIDES)], boxes, None, points, strides=STRIDES)


def _whole(images: Float[ArrayLike, "B H W I"]) -> Int[ArrayLike, "B 2"]:
    """(H, W) of each image, where nothing of it is padding."""
    number, *size = jnp.shape(images)[:3]
    xp = numpy_for(number, *size)
    return xp.broadcast_to(xp.asarray((size,), xp.int32), (number, 2))
