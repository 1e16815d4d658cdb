# SPDX-License-Identifier: Apache-2.0
"""A map taken apart into maps of every so-manyth pixel, and put together again."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def phases(x: Float[Array, "B H W C"], step: int) -> Float[Array, "N _ _ C"]:
    """Every step-th pixel in both directions as a map of its own: N = B · step² of them.

    A dilated convolution is an ordinary one on these maps. Zeros fill up sides that `step` does not
    divide, as the padding of a convolution does.
    """
    if step == 1:
        return x
    B, H, W, C = x.shape
    x = jnp.pad(x, ((0, 0), (0, -H % step), (0, -W % step), (0, 0)))
    x = x.reshape(B, x.shape[1] // step, step, x.shape[2] // step, step, C)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(B * step**2, x.shape[1], x.shape[3], C)


def from_phases(
    maps: Float[Array, "N _ _ C"], step: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The map of a size, (H, W), whose `phases` these are."""
    if step == 1:
        return maps
    N, rows, columns, C = maps.shape
    x = maps.reshape(N // step**2, step, step, rows, columns, C).transpose(0, 3, 1, 4, 2, 5)
    x = x.reshape(N // step**2, rows * step, columns * step, C)
    return x[:, : size[0], : size[1]]
