# SPDX-License-Identifier: Apache-2.0
"""Routes: the orders in which scans walk over a map, and the way back.

    raster          row by row
    reverse         row by row, from the last token to the first
    bidirectional   both of these
    column          column by column
    cross           rows and columns, each in both directions (VMamba, arXiv 2401.10166)
    windowed        window by window, row by row in each (LocalMamba, arXiv 2403.09338)
    snake           row by row, every second row backwards, so that neighbours in the sequence are
                    neighbours in the map (PlainMamba, arXiv 2403.17695, "continuous")
    snakes          by rows and by columns, each in both directions (PlainMamba)
    atrous          every second row and column, then the three phases left out
    phases          each of these four phases on its own, two by rows and two by columns
                    (EfficientVMamba, arXiv 2403.09977)

A route is made of paths. A path is an order of the tokens and whether it is walked backwards;
`flatten` and `restore` apply it. `DIRECTIONS` are the paths that LocalMamba chooses from.
"""

import functools
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mambaout_jax.kernels.dispatch import is_known, numpy_for

PAD = -1  # in an order: a step that meets no token, and reads zero

# Raster numbers of tokens: a constant, or computed by the program where a map's size is a symbol.
Order = Int[np.ndarray | Array, "_"]


class Path(NamedTuple):
    """One walk over a map.

    Attributes:
        order: order of the tokens, see `token_order`.
        reverse: whether it is walked from the end to the start.
    """

    order: str
    reverse: bool = False


def _both_ways(*orders: str) -> tuple[Path, ...]:
    return tuple(Path(order, reverse) for reverse in (False, True) for order in orders)


ROUTES: dict[str, tuple[Path, ...]] = {
    "raster": (Path("raster"),),
    "reverse": (Path("raster", reverse=True),),
    "bidirectional": _both_ways("raster"),
    "column": (Path("column"),),
    "cross": _both_ways("raster", "column"),
    "windowed": (Path("window_7"),),  # 7 divides the maps of 56, 28, 14 and 7 tokens a side
    "snake": (Path("snake"),),
    "snakes": (
        Path("snake"),
        Path("snake", reverse=True),
        Path("column_snake"),
        Path("column_snake", reverse=True),
    ),
    "atrous": (Path("atrous"),),
    "phases": (Path("phase_00"), Path("phase_10"), Path("phase_01"), Path("phase_11")),
}
ORDERS = ("raster", "column", "snake", "column_snake", "atrous", "window_K", "phase_RC")
DIRECTIONS: dict[str, Path] = {
    "h": Path("raster"),
    "h_flip": Path("raster", reverse=True),
    "v": Path("column"),
    "v_flip": Path("column", reverse=True),
    "w2": Path("window_2"),
    "w2_flip": Path("window_2", reverse=True),
    "w7": Path("window_7"),
    "w7_flip": Path("window_7", reverse=True),
}


def paths_of(routes: str) -> tuple[Path, ...]:
    """The paths of a route.

    Raises:
        ValueError: there is no such route.
    """
    if routes not in ROUTES:
        raise ValueError(f"routes={routes!r} is not known; allowed are {', '.join(ROUTES)}")
    return ROUTES[routes]


def directions_of(names: str) -> tuple[Path, ...]:
    """The paths of some of LocalMamba's directions, such as "h v_flip w7 w7_flip".

    Raises:
        ValueError: there is no such direction.
    """
    unknown = [name for name in names.split() if name not in DIRECTIONS]
    if unknown or not names.split():
        raise ValueError(
            f"directions={names!r} must be names of {', '.join(DIRECTIONS)}, divided by blanks"
        )
    return tuple(DIRECTIONS[name] for name in names.split())


def flatten(x: Float[Array, "B H W C"], path: Path) -> Float[Array, "B S C"]:
    """The tokens of a map as a path meets them, S of `token_order`; zeros where it meets none."""
    B, H, W, C = x.shape
    if path.order in ("raster", "column"):  # a transposition is cheaper than a gather
        x = x.transpose(0, 2, 1, 3) if path.order == "column" else x
        tokens = x.reshape(B, H * W, C)
        return lax.rev(tokens, (1,)) if path.reverse else tokens
    return take(x.reshape(B, H * W, C), walk(path, H, W))


def restore(
    tokens: Float[Array, "B S C"], path: Path, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The map whose tokens a path met; zeros where it met none. The inverse of `flatten`.

    Args:
        size: (H, W) of the map.
    """
    (B, _, C), (H, W) = tokens.shape, size
    if path.order in ("raster", "column"):
        tokens = lax.rev(tokens, (1,)) if path.reverse else tokens
        if path.order == "column":
            return tokens.reshape(B, W, H, C).transpose(0, 2, 1, 3)
        return tokens.reshape(B, H, W, C)
    return take(tokens, steps_of(walk(path, H, W), H * W)).reshape(B, H, W, C)


def take(tokens: Float[Array, "B L C"], order: Order) -> Float[Array, "B S C"]:
    """Tokens by their numbers in an order, zeros where it says `PAD`."""
    if isinstance(order, np.ndarray):
        every = np.arange(tokens.shape[1])
        if np.array_equal(order, every):
            return tokens
        if np.array_equal(order, every[::-1]):
            return tokens[:, ::-1]
        if not (order == PAD).any():
            return jnp.take(tokens, order, axis=1)
    tokens = jnp.pad(tokens, ((0, 0), (0, 1), (0, 0)))  # the token that PAD reads, the last
    order = numpy_for(*order.shape).where(order == PAD, tokens.shape[1] - 1, order)
    return jnp.take(tokens, order, axis=1)


def steps_of(order: Order, count: int) -> Order:
    """The step at which an order meets each of `count` tokens, `PAD` where it never does."""
    if not isinstance(order, np.ndarray):
        beyond = jnp.where(order == PAD, count, order)
        return jnp.full(count, PAD).at[beyond].set(jnp.arange(order.shape[0]), mode="drop")
    steps = np.full(count, PAD)
    met = np.flatnonzero(order != PAD)
    steps[order[met]] = met
    return steps


def walk(path: Path, H: int, W: int) -> Order:
    """Raster numbers of a map's tokens as a path meets them; see `token_order`."""
    order = token_order(path.order, H, W)
    return numpy_for(H, W).flip(order) if path.reverse else order


def token_order(order: str, H: int, W: int) -> Order:
    """Raster numbers of a map's tokens in an order.

        raster, column, snake, column_snake, atrous     see the top of this file
        window_K     windows of K rows and columns; those at the right and lower border are filled
                     up with `PAD`, as in LocalMamba
        phase_RC     rows of parity R and columns of parity C, by rows where R is 0 and by columns
                     where it is 1; odd maps are filled up with `PAD`, as in EfficientVMamba

    Raises:
        ValueError: there is no such order.
    """
    return (_known_order if is_known(H, W) else _order)(order, H, W)


def _order(order: str, H: int, W: int) -> Order:
    xp = numpy_for(H, W)
    row, column = xp.divmod(xp.arange(H * W), W)
    keys = {  # the last decides first
        "raster": (column, row),
        "column": (row, column),
        "snake": (xp.where(row % 2, -column, column), row),
        "column_snake": (xp.where(column % 2, -row, row), column),
        "atrous": (column, row, column % 2, row % 2),
    }
    if order in keys:
        return xp.lexsort(keys[order])
    if window := re.fullmatch(r"window_([1-9]\d*)", order):
        return _blocks(H, W, int(window[1])).transpose(0, 2, 1, 3).ravel()
    if phase := re.fullmatch(r"phase_([01])([01])", order):
        r, c = int(phase[1]), int(phase[2])
        phase_map = _blocks(H, W, 2)[:, r, :, c]
        return (phase_map.T if r else phase_map).ravel()
    raise ValueError(f"order={order!r} is not known; allowed are {', '.join(ORDERS)}")


_known_order = functools.cache(_order)


def _blocks(H: int, W: int, K: int) -> Int[np.ndarray | Array, "_ K _ K"]:
    """Raster numbers as a map, filled up at its end to multiples of K, which its axes divide by."""
    xp = numpy_for(H, W)
    numbers = xp.arange(H * W).reshape(H, W)
    padded = xp.pad(numbers, ((0, -H % K), (0, -W % K)), constant_values=PAD)
    return padded.reshape(-(-H // K), K, -(-W // K), K)
