# SPDX-License-Identifier: Apache-2.0
"""Routes: the orders in which a scan walks over a map, and the way back.

    raster          row by row
    reverse         row by row, from the last token to the first
    bidirectional   both of these
    column          column by column
    cross           rows and columns, each in both directions (VMamba, arXiv 2401.10166)
    windowed        window by window, row by row in each (LocalMamba, arXiv 2403.09338)
    snake           row by row, every second row backwards, so that neighbours in the sequence are
                    neighbours in the map (PlainMamba, arXiv 2403.17695, "continuous")
    atrous          every second row and column, then the three phases left out
                    (EfficientVMamba, arXiv 2403.09977)

A route is made of paths. A path is an order of the tokens, `flatten` and `restore` apply it, and
whether the scan runs through it backwards: the scan does that itself, nothing is flipped.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mambaout_jax.kernels.dispatch import is_known

WINDOW = 7  # pixels of a side; it divides the maps of 56, 28, 14 and 7 tokens a side
_PHASES = 2  # of atrous, along each axis


class Path(NamedTuple):
    """One walk over a map.

    Attributes:
        order: order of the tokens, one of `ORDERS`.
        reverse: whether it is walked from the end to the start.
    """

    order: str
    reverse: bool = False


ROUTES: dict[str, tuple[Path, ...]] = {
    "raster": (Path("raster"),),
    "reverse": (Path("raster", reverse=True),),
    "bidirectional": (Path("raster"), Path("raster", reverse=True)),
    "column": (Path("column"),),
    "cross": (
        Path("raster"),
        Path("column"),
        Path("raster", reverse=True),
        Path("column", reverse=True),
    ),
    "windowed": (Path("windowed"),),
    "snake": (Path("snake"),),
    "atrous": (Path("atrous"),),
}
ORDERS = ("raster", "column", "windowed", "snake", "atrous")


def paths_of(routes: str) -> tuple[Path, ...]:
    """The paths of a route.

    Raises:
        ValueError: there is no such route.
    """
    if routes not in ROUTES:
        raise ValueError(f"routes={routes!r} is not known; allowed are {', '.join(ROUTES)}")
    return ROUTES[routes]


def flatten(x: Float[Array, "B H W C"], order: str) -> Float[Array, "B L C"]:
    """The tokens of a map in an order, one of `ORDERS`; L = H · W for any H and W."""
    B, H, W, C = x.shape
    if order == "column":  # a transposition is cheaper than a gather
        x = x.transpose(0, 2, 1, 3)
    tokens = x.reshape(B, H * W, C)
    if order in ("raster", "column"):
        return tokens
    return jnp.take(tokens, token_order(order, H, W), axis=1)


def restore(
    tokens: Float[Array, "B L C"], order: str, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The map whose tokens in this order are given; the inverse of `flatten`.

    Args:
        size: (H, W) of the map.
    """
    (B, _, C), (H, W) = tokens.shape, size
    if order == "column":
        return tokens.reshape(B, W, H, C).transpose(0, 2, 1, 3)
    if order != "raster":
        tokens = jnp.take(tokens, np.argsort(token_order(order, H, W)), axis=1)
    return tokens.reshape(B, H, W, C)


@functools.cache
def token_order(order: str, H: int, W: int) -> Int[np.ndarray, "L"]:
    """Raster numbers of a map's tokens in the order of the walk.

    Windows and phases at the border are cut off where the map ends; nothing is padded.

    Raises:
        ValueError: there is no such order, or it needs a size that is known when it is traced.
    """
    if not is_known(H, W):
        raise ValueError(
            f"order={order!r} is laid out for maps of a known size, and this one has {H} x {W} "
            "tokens; export with numbers for height and width, or take raster or column orders"
        )
    row, column = np.divmod(np.arange(H * W), W)
    if order == "raster":
        keys = (column, row)
    elif order == "column":
        keys = (row, column)
    elif order == "snake":
        keys = (np.where(row % 2, -column, column), row)
    elif order == "windowed":
        keys = (column, row, column // WINDOW, row // WINDOW)
    elif order == "atrous":
        keys = (column, row, column % _PHASES, row % _PHASES)
    else:
        raise ValueError(f"order={order!r} is not known; allowed are {', '.join(ORDERS)}")
    return np.lexsort(keys)  # by the last key first
