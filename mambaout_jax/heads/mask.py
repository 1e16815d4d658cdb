# SPDX-License-Identifier: Apache-2.0
"""The shape of an object inside its box: the mask head, and masks put back into their image.

Both have the numbers of mmdet 3.3.0 (`FCNMaskHead`).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Bool, Float, Int

from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.precision import at_least_float32, compute_dtype
from mambaout_jax.layers.transposed_conv import TransposedConv

_CONVOLUTIONS = 4


class MaskHead(nn.Module):
    """Logits of a mask of twice the region's side, for each class or for one.

    Four times relu(conv3x3), relu of a transposed convolution 2x2, then a product over channels.

    Attributes:
        num_classes: K.
        channels: of all layers.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 80
    channels: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], labels: Int[Array, "N"] | None = None
    ) -> Float[Array, "N _ _ *K"]:
        """Logits (N, 2H, 2W, K), or with labels, which are 0 or above, (N, 2H, 2W) of those."""
        dtype = compute_dtype(self.dtype)
        init = normal_fan_out_init(9 * self.channels)
        for i in range(_CONVOLUTIONS):
            name = f"conv_{i}"
            x = Conv(self.channels, 3, padding=1, dtype=dtype, kernel_init=init, name=name)(x)
            x = nn.relu(x)
        init = normal_fan_out_init(4 * self.channels)
        x = TransposedConv(self.channels, 2, dtype=dtype, kernel_init=init, name="upsample")(x)
        predictor = MaskPredictor(self.num_classes, dtype, name="predictor")
        return at_least_float32(predictor(nn.relu(x), labels))


class MaskPredictor(nn.Module):
    """Convolution 1x1 to a logit for each class, or to that of one class for each region.

    Attributes:
        num_classes: K; the kernel is stored as (1, 1, C, K).
        dtype: dtype of the computation, None to promote.
    """

    num_classes: int
    dtype: Dtype | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], labels: Int[Array, "N"] | None
    ) -> Float[Array, "N H W *K"]:
        shape = (1, 1, x.shape[-1], self.num_classes)
        init = normal_fan_out_init(self.num_classes)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if labels is None:
            return x @ kernel[0, 0] + bias[None, None, None]
        own = kernel[0, 0].T[labels]  # (N, C): so that no other class is computed
        return jnp.einsum("nhwc,nc->nhw", x, own) + bias[labels][:, None, None]

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return inputs[0].size * self.num_classes  # as in the literature, also where one is computed


def paste_masks(
    probabilities: Float[np.ndarray, "N S S"],
    boxes: Float[np.ndarray, "N 4"],
    size: tuple[int, int],
) -> Bool[np.ndarray, "N H W"]:
    """Masks of a whole image, True where the probability is at least 0.5; on the host.

    Args:
        probabilities: of S x S points in each box.
        boxes: in pixels of the image.
        size: (H, W) of the image.
    """
    pasted = np.zeros((len(boxes), *size), bool)
    for mask, probability, box in zip(pasted, probabilities, boxes, strict=True):
        (rows, columns), values = paste_mask(probability, box, size)
        mask[rows, columns] = values >= 0.5
    return pasted


def paste_mask(
    probability: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], size: tuple[int, int]
) -> tuple[tuple[slice, slice], Float[np.ndarray, "_ _"]]:
    """The part of an image that one mask can reach, and the probabilities there.

    They are interpolated linearly at the centres of pixels, and 0 outside of the mask's points, as
    by `torch.nn.functional.grid_sample`.

    Args:
        probability: of S x S points in the box.
        box: in pixels of the image. Nothing is inside one whose sides are not above 0.
        size: (H, W) of the image.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    down, rows = _weights(y1, y2, size[0], len(probability))
    across, columns = _weights(x1, x2, size[1], len(probability))
    return (down, across), rows @ np.asarray(probability, np.float32) @ columns.T


def _weights(
    start: np.float32, end: np.float32, size: int, points: int
) -> tuple[slice, Float[np.ndarray, "_ S"]]:
    """Pixels of an axis that points between start and end reach, and each point's weight there."""
    if not end > start:
        return slice(0, 0), np.zeros((0, points), np.float32)
    margin = (end - start) / points
    first = int(np.clip(np.floor(start - margin), 0, size))
    last = int(np.clip(np.ceil(end + margin), first, size))
    pixels = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    places = (pixels - start) / (end - start) * points - np.float32(0.5)
    distances = np.abs(places[:, None] - np.arange(points, dtype=np.float32)[None])
    return slice(first, last), np.maximum(0, 1 - distances).astype(np.float32)
