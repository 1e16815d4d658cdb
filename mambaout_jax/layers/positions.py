# SPDX-License-Identifier: Apache-2.0
"""Grids of patches and their positions: absolute tables, rotations, relative ones in a window."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from mambaout_jax.kernels.dispatch import is_known, numpy_for
from mambaout_jax.layers.resize import resize_linear


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) from a side or a pair."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def map_size(image_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the map of a stride; those that are begun count."""
    height, width = height_and_width(image_size)
    return -(-height // stride), -(-width // stride)


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image.

    Raises:
        ValueError: the patches do not fill the image, or its size is a symbol of `jax.export` and
            not known to be a multiple of theirs.
    """
    if not is_known(height % patch_size, width % patch_size):
        raise ValueError(
            f"images of {height} x {width} pixels are not known to divide into patches of "
            f"{patch_size}; write the symbols as multiples, such as {patch_size}*h"
        )
    if height % patch_size or width % patch_size:
        heights, widths = (
            " or ".join(
                str(patch_size * k) for k in sorted({max(1, n // patch_size), -(-n // patch_size)})
            )
            for n in (height, width)
        )
        raise ValueError(
            f"images of {height} x {width} pixels do not divide into patches of {patch_size}; the "
            f"nearest heights are {heights}, the nearest widths {widths}: resize or pad the images"
        )
    return height // patch_size, width // patch_size


def check_symbols(
    size: tuple[int, ...], strides: tuple[int, ...], reductions: tuple[int, ...]
) -> None:
    """Raises ValueError where images have symbols of `jax.export` that coarse maps may not divide.

    Args:
        size: height and width of the images.
        strides: those of the stages' maps.
        reductions: sides of the pixels of coarse maps on them.
    """
    height, width = size
    if not is_known(height, width):
        patch_grid(height, width, max(map(operator.mul, strides, reductions)))


def resize_positions(
    table: Float[ArrayLike, "1 L C"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    antialias: bool = True,
    middle: bool = False,
) -> Float[ArrayLike, "1 _ C"]:
    """Interpolates a table of positions to another grid of patches; equal grids change nothing.

    Args:
        table: positions of the patches, row by row. One more entry belongs to a class token and is
            kept.
        grid: rows and columns of the table.
        new_grid: rows and columns of the result.
        antialias: bicubic as timm has it, with antialias and the kernel of a = -0.5; or as
            `torch.nn.functional.interpolate` has it without antialias, with a = -0.75.
        middle: the class token's entry stands between the first and the second half of the patches,
            not before all of them.
    """
    if grid == new_grid:  # never of symbols; interpolation to the same size changes nothing, either
        return table
    table = jnp.asarray(table)
    count, channels = grid[0] * grid[1], table.shape[-1]
    tokens = table.shape[1] - count
    at, new_at = (count // 2, new_grid[0] * new_grid[1] // 2) if middle else (0, 0)
    token = table[:, at : at + tokens]
    patches = jnp.concatenate((table[0, :at], table[0, at + tokens :]))
    patches = patches.reshape(*grid, channels)  # (H, W, C)
    if antialias:
        patches = jax.image.resize(patches, (*new_grid, channels), "cubic", antialias=True)
    else:
        rows, columns = map(_bicubic_weights, grid, new_grid)
        patches = jnp.einsum("hr,wc,rcd->hwd", rows, columns, patches)
    patches = patches.reshape(1, -1, channels)
    return jnp.concatenate((patches[:, :new_at], token, patches[:, new_at:]), axis=1)


def _bicubic_weights(size: int, new_size: int) -> Float[np.ndarray | Array, "M N"]:
    """Weight of each of `size` samples in each of `new_size`: PyTorch's, pixels beyond the border
    are those at the border."""
    xp = numpy_for(new_size)
    a = -0.75
    # The place of a sample is (k + 1/2) size / new_size - 1/2, here as a whole number and the rest.
    first, rest = xp.divmod((2 * xp.arange(new_size) + 1) * size - new_size, 2 * new_size)
    weights = xp.zeros((new_size, size), np.float32)
    for tap in (-1, 0, 1, 2):
        x = xp.abs(rest / (2 * new_size) - tap)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        sample = xp.clip(first + tap, 0, size - 1)
        here = sample[:, None] == np.arange(size)[None]
        weight = xp.where(x <= 1, near, far)[:, None]
        weights = (weights + xp.where(here, weight, 0)).astype(np.float32)
    return weights


def grid_sinusoids(grid: tuple[int, int], channels: int) -> Float[np.ndarray, "L C"]:
    """Positions of a grid as sines and cosines, row by row, of rates from 1 down to 1 / 10000.

    The first half of the channels tells the column, the second the row; a multiple of four.
    """
    rates = 10000.0 ** (-np.arange(channels // 4) / (channels // 4))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [place[:, None] * rates for place in (columns, rows)]
    return np.concatenate([f(x) for x in angles for f in (np.sin, np.cos)], axis=1)


def rotation_tables(
    channels: int, grid: tuple[int, int], side: int
) -> tuple[Float[np.ndarray, "L C"], Float[np.ndarray, "L C"]]:
    """Cosines and sines that `rotate` turns a grid of tokens by, row by row (EVA-02's "2D RoPE").

    The first half of the channels turns by the row, the second by the column; neighbours 2i and
    2i + 1 of a half turn by its number times 10000^(-4i/C). On any grid rows and columns are
    numbered from 0 to below `side`, that of the grid at the published size.
    """
    half = channels // 2
    rates = 10000.0 ** (-np.arange(0, half, 2, dtype=np.float32) / half)
    tokens = np.divmod(np.arange(grid[0] * grid[1]), grid[1])  # rows and columns
    places = [x.astype(np.float32) / size * side for x, size in zip(tokens, grid, strict=True)]
    angles = np.concatenate([np.repeat(x[:, None] * rates, 2, axis=1) for x in places], 1)
    return np.cos(angles), np.sin(angles)


def rotate(
    x: Float[Array, "B L C"], cosines: Float[ArrayLike, "L C"], sines: Float[ArrayLike, "L C"]
) -> Float[Array, "B L C"]:
    """Turns neighbouring channels, (x₀, x₁) to (x₀ cos - x₁ sin, x₁ cos + x₀ sin)."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack((-pairs[..., 1], pairs[..., 0]), axis=-1).reshape(x.shape)
    cosines, sines = (jnp.asarray(table, x.dtype)[None] for table in (cosines, sines))
    return x * cosines + turned * sines


def relative_bias(
    table: Float[Array, "offsets heads"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "1 heads L L"]:
    """What attention over a map adds to the scores of each pair of its tokens.

    Args:
        table: a row for each offset, see `relative_position_index`.
        grid: rows and columns of the map that the table is made for.
        size: those of the map; for another one than `grid` the table is interpolated.
    """
    index = relative_position_index(*size)
    if grid == size:  # never of symbols
        return jnp.moveaxis(jnp.asarray(table)[index], -1, 0)[None]
    rows, columns = (2 * n - 1 for n in size)
    table = table.reshape(2 * grid[0] - 1, 2 * grid[1] - 1, table.shape[-1])
    table = resize_linear(table, (rows, columns))
    return jnp.moveaxis(table[index // columns, index % columns], -1, 0)[None]


def relative_position_index(height: int, width: int) -> Int[np.ndarray | Array, "L L"]:
    """Row of a relative-position table for each pair of tokens of a window (Swin, Section 3.2).

    Entry [i, j] stands for the offset from token j to token i, tokens row by row; offsets are
    numbered row by row from (1 - height, 1 - width), (2 · height - 1) · (2 · width - 1) in all.
    """
    xp = numpy_for(height, width)
    rows, columns = xp.divmod(xp.arange(height * width), width)
    down = rows[:, None] - rows[None] + height - 1
    right = columns[:, None] - columns[None] + width - 1
    return down * (2 * width - 1) + right
