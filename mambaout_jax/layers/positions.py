# SPDX-License-Identifier: Apache-2.0
"""Tables of positions: absolute ones, one entry per patch, and relative ones in a window."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) from a side or a pair."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def resize_positions(
    table: Float[ArrayLike, "1 L C"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[ArrayLike, "1 _ C"]:
    """Interpolates a table of positions to another grid of patches; equal grids change nothing.

    Bicubic with antialias, timm's way: there PyTorch's kernel is that of JAX, with a = -0.5.
    (Without antialias PyTorch has a = -0.75.)

    Args:
        table: positions of the patches, row by row; what stands before them belongs to tokens
            without a place in the image, such as a class token, and is kept.
        grid: rows and columns of the table.
        new_grid: rows and columns of the result.
    """
    if grid == new_grid:
        return table
    table = jnp.asarray(table)
    channels = table.shape[-1]
    prefix = table.shape[1] - grid[0] * grid[1]
    patches = table[0, prefix:].reshape(*grid, channels)  # (H, W, C)
    patches = jax.image.resize(patches, (*new_grid, channels), "cubic", antialias=True)
    return jnp.concatenate((table[:, :prefix], patches.reshape(1, -1, channels)), axis=1)


def relative_position_index(height: int, width: int) -> Int[np.ndarray, "L L"]:
    """Row of a relative-position table for each pair of tokens of a window (Swin, Section 3.2).

    Entry [i, j] stands for the offset from token j to token i, tokens row by row; offsets are
    numbered row by row from (1 - height, 1 - width), (2 · height - 1) · (2 · width - 1) in all.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    down = rows[:, None] - rows[None] + height - 1
    right = columns[:, None] - columns[None] + width - 1
    return down * (2 * width - 1) + right
