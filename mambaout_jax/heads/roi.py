# SPDX-License-Identifier: Apache-2.0
"""What is in a proposed region: the box head, and the detections that follow from it.

Both have the numbers of mmdet 3.3.0 (`Shared2FCBBoxHead`, `multiclass_nms`).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mambaout_jax.heads.boxes import ROI_STDS, clip, decode
from mambaout_jax.kernels.nms import nms
from mambaout_jax.layers.initializers import xavier_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.precision import at_least_float32, compute_dtype

_SCORE = 0.05  # below or at which a class of a region is no detection
_OVERLAP = 0.5  # above which the lower of two detections of a class is dropped


class BoxHead(nn.Module):
    """Two hidden layers over the pixels of a region, then its classes and its deltas.

        y = relu(fc2(relu(fc1(x)))),  logits = fc(y),  deltas = fc(y)

    Attributes:
        num_classes: K; class K, the last, is background.
        hidden: width of both hidden layers.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 80
    hidden: int = 1024
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B H W C"]
    ) -> tuple[Float[Array, "*B _"], Float[Array, "*B _ 4"]]:
        """Logits of the K + 1 classes and deltas for each of the K, at least float32."""
        dtype = compute_dtype(self.dtype)
        x = x.reshape(*x.shape[:-3], -1)  # (*B, H · W · C)
        for i in range(2):
            x = nn.relu(
                Dense(self.hidden, dtype=dtype, kernel_init=xavier_init, name=f"fc{i + 1}")(x)
            )
        logits, deltas = (
            Dense(width, dtype=dtype, kernel_init=nn.initializers.normal(std), name=name)(x)
            for name, width, std in (
                ("classifier", self.num_classes + 1, 0.01),
                ("delta", 4 * self.num_classes, 0.001),
            )
        )
        deltas = deltas.reshape(*deltas.shape[:-1], self.num_classes, 4)
        return at_least_float32(logits), at_least_float32(deltas)


class Detections(NamedTuple):
    """Objects that were found, by falling score.

    Attributes:
        boxes: in pixels of the image, 0 in rows without an object.
        scores: probabilities, 0 in rows without an object.
        labels: int32, -1 in rows without an object.
    """

    boxes: Float[Array, "B R 4"]
    scores: Float[Array, "B R"]
    labels: Int[Array, "B R"]


def detections(
    proposals: Float[ArrayLike, "B N 4"],
    valid: Bool[ArrayLike, "B N"],
    logits: Float[ArrayLike, "B N _"],
    deltas: Float[ArrayLike, "B N K 4"],
    image_shapes: Int[ArrayLike, "B 2"],
    limit: int = 100,
) -> Detections:
    """The best `limit` objects of each image, of all classes together.

    Every class of a proposal with a probability above 0.05 is a candidate, whose box is cut off at
    the edges of the image. One that overlaps a better one of its class by more than 0.5 is dropped.

    Args:
        proposals: boxes of which the heads spoke.
        valid: which rows hold one.
        logits: of the K + 1 classes, background last.
        deltas: for each class.
        image_shapes: (H, W) of each image without its padding.
        limit: R, rows that come out.
    """
    of_image = functools.partial(_detections_of_image, limit=limit)
    return jax.vmap(of_image)(
        jnp.asarray(proposals),
        jnp.asarray(valid),
        jnp.asarray(logits),
        jnp.asarray(deltas),
        jnp.asarray(image_shapes),
    )


def _detections_of_image(
    proposals: Float[Array, "N 4"],
    valid: Bool[Array, "N"],
    logits: Float[Array, "N _"],
    deltas: Float[Array, "N K 4"],
    image_shape: Int[Array, "2"],
    limit: int,
) -> Detections:
    scores = jax.nn.softmax(logits, axis=-1)[:, :-1]  # (N, K)
    boxes = decode(jnp.broadcast_to(proposals[:, None], deltas.shape), deltas, ROI_STDS)
    boxes = clip(boxes, image_shape).reshape(-1, 4)  # (N · K, 4)
    scores = jnp.where(valid[:, None] & (scores > _SCORE), scores, -jnp.inf)
    labels = jnp.broadcast_to(jnp.arange(scores.shape[1])[None], scores.shape).reshape(-1)
    scores = scores.reshape(-1)
    kept = nms(boxes, scores, _OVERLAP, groups=labels, max_outputs=limit)
    found = kept >= 0
    return Detections(
        jnp.where(found[:, None], boxes[kept], 0),
        jnp.where(found, scores[kept], 0),
        jnp.where(found, labels[kept], -1).astype(jnp.int32),
    )
