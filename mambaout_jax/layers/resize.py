# SPDX-License-Identifier: Apache-2.0
"""Interpolation and pooling of maps to a size."""

import jax
import numpy as np
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import is_known


def resize_linear(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B _ _ C"]:
    """The map interpolated to a size, (H, W), without antialias; an equal size changes nothing.

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.

    Raises:
        ValueError: a size is a symbol of `jax.export`.
    """
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    if not is_known(*x.shape[1:3], *size):
        raise ValueError(
            f"maps are interpolated between known sizes, and here they are {x.shape[1]} x "
            f"{x.shape[2]} and {size[0]} x {size[1]} pixels; export with numbers for height and "
            "width: the batch may be a symbol"
        )
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.resize(x, shape, "linear", antialias=False)


def pooling_weights(size: int, pooled: int) -> Float[np.ndarray, "P N"]:
    """Weight of each of `size` pixels in each of `pooled` means: PyTorch's adaptive pooling."""
    starts = np.arange(pooled) * size // pooled
    ends = -(-(np.arange(pooled) + 1) * size // pooled)
    inside = (np.arange(size) >= starts[:, None]) & (np.arange(size) < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
