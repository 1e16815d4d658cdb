# SPDX-License-Identifier: Apache-2.0
"""Interpolation and pooling of maps to a size."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float


def resize_linear(x: Float[Array, "*S C"], size: Sequence[int]) -> Float[Array, "*T C"]:
    """Interpolates the axes before the channels to `size`, as many as it has, without antialias.

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: what is aligned are
    the outer edges of the first and last samples. An equal size changes nothing.
    """
    shape = (*x.shape[: -len(size) - 1], *size, x.shape[-1])
    return x if shape == x.shape else jax.image.resize(x, shape, "linear", antialias=False)


def pooling_weights(size: int, pooled: int) -> Float[np.ndarray, "P N"]:
    """Weight of each of `size` pixels in each of `pooled` means: PyTorch's adaptive pooling."""
    starts = np.arange(pooled) * size // pooled
    ends = -(-(np.arange(pooled) + 1) * size // pooled)
    inside = (np.arange(size) >= starts[:, None]) & (np.arange(size) < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
