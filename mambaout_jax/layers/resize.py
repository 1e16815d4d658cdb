# SPDX-License-Identifier: Apache-2.0
"""Interpolation and pooling of maps to a size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import numpy_for


def resize_linear(x: Float[Array, "*S C"], size: Sequence[int]) -> Float[Array, "*T C"]:
    """Interpolates the axes before the channels to `size`, as many as it has, without antialias.

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: what is aligned are
    the outer edges of the first and last samples. An equal size changes nothing.
    """
    shape = (*x.shape[: -len(size) - 1], *size, x.shape[-1])
    return x if shape == x.shape else jax.image.resize(x, shape, "linear", antialias=False)


def mean_pool_to(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B _ _ C"]:
    """Means of pixels that make a map of a size, as `torch.nn.functional.adaptive_avg_pool2d`."""
    rows, columns = (
        jnp.asarray(pooling_weights(n, m), x.dtype) for n, m in zip(x.shape[1:3], size, strict=True)
    )
    x = jnp.einsum("hr,brwc->bhwc", rows, x, precision="highest")
    return jnp.einsum("wr,bhrc->bhwc", columns, x, precision="highest")


def pooling_weights(size: int, pooled: int) -> Float[np.ndarray | Array, "P N"]:
    """Weight of each of `size` pixels in each of `pooled` means: PyTorch's adaptive pooling."""
    xp = numpy_for(size, pooled)
    pixels, number = xp.arange(size)[None], xp.arange(pooled)[:, None]
    starts, ends = number * size // pooled, -(-(number + 1) * size // pooled)
    inside = (pixels >= starts) & (pixels < ends)
    return inside / inside.sum(axis=1, keepdims=True)


def linear_weights(size: int, resized: int) -> Float[np.ndarray, "P N"]:
    """Weight of each of `size` pixels in each of the `resized` ones that `resize_linear` makes."""
    at = np.clip((np.arange(resized) + 0.5) * size / resized - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)[None]))
