# SPDX-License-Identifier: Apache-2.0
"""3 x 3 convolutions over all channels by short products (Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks", arXiv:1509.09308: Winograd's F(2 x 2, 3 x 3)).

Squares of 2 x 2 results come from windows of 4 x 4 inputs, which overlap by half:

    y = Aᵀ ((G g Gᵀ) · (Bᵀ x B)) A

where · is a product for each of the 16 places of a window, summed over the input channels: 16
matrix products of windows and weights in place of 9 products of four times as many pixels. A, B and
G add, subtract and halve, so that float32 results are off by a few roundings more than a direct
sum. The kernel's gradient comes the same way, by the transposes.

XLA:CPU takes 0.49 s for maps (2, 128, 128, 512) and as many channels out, on two cores, and 0.94 s
for its own convolution; 1.2 s for both gradients, and 4.8 s for its own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mambaout_jax.kernels.matmul import weight_gradient

Table = Sequence[Sequence[jax.Array]]


def winograd_conv(
    x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I F"], padding: int
) -> Float[Array, "B _ _ F"]:
    """The convolution of stride 1.

    Args:
        x: maps of known sizes.
        kernel: in the dtype of `x`.
        padding: rows and columns of zeros on every side: 0, 1 or 2.

    Returns:
        Maps in the dtype of `x`; sums are float32 at least.
    """
    H, W = (n + 2 * padding - 2 for n in x.shape[1:3])
    weights = _both_ways(_kernel_sums, _wide(kernel))
    products = [
        [window @ weight for window, weight in zip(*rows, strict=True)]
        for rows in zip(_windows(x, H, W, padding), weights, strict=True)
    ]
    B, F, squares = x.shape[0], kernel.shape[3], _both_ways(_result_sums, products)
    parts = [[part.reshape(B, -(-H // 2), -(-W // 2), F) for part in row] for row in squares]
    y = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)  # (B, H/2, 2, W/2, 2, F)
    return y.reshape(B, -(-H // 2) * 2, -(-W // 2) * 2, F)[:, :H, :W].astype(x.dtype)


def winograd_gradients(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I F"],
    dy: Float[Array, "B _ _ F"],
    padding: int,
) -> tuple[Float[Array, "B H W I"], Float[Array, "3 3 I F"]]:
    """The gradients of x and of the kernel; arguments as in `winograd_conv`."""
    dx = winograd_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3), 2 - padding)
    H, W = dy.shape[1:3]
    even = jnp.pad(dy, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
    squares = _wide([[even[:, i::2, j::2] for j in range(2)] for i in range(2)])
    dproducts = _both_ways(_result_sums_back, squares)
    dweights = [
        [
            weight_gradient(window, d.reshape(-1, d.shape[3]))
            for window, d in zip(*rows, strict=True)
        ]
        for rows in zip(_windows(x, H, W, padding), dproducts, strict=True)
    ]
    dkernel = _both_ways(_kernel_sums_back, dweights)
    return dx, jnp.stack([jnp.stack(row) for row in dkernel]).astype(kernel.dtype)


def _windows(x: jax.Array, H: int, W: int, padding: int) -> Table:
    """Bᵀ x B of every window of H x W results, by place: (windows, I)."""
    odd = [n % 2 for n in (H, W)]  # results that the last windows have too many
    x = jnp.pad(x, ((0, 0), *((padding, padding + more) for more in odd), (0, 0)))
    rows, columns = H + odd[0], W + odd[1]
    places = [
        [x[:, i : i + rows - 1 : 2, j : j + columns - 1 : 2] for j in range(4)] for i in range(4)
    ]
    table = _both_ways(_input_sums, _wide(places))
    return [[window.reshape(-1, x.shape[3]) for window in row] for row in table]


def _wide(table: Table | jax.Array) -> Table:
    return [[x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in row] for row in table]


def _both_ways(sums: Callable[..., tuple], table: Table) -> Table:
    """A transform of one axis, applied to both axes of a table."""
    rows = [sums(*row) for row in table]
    columns = [sums(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


# Bᵀ, G, Aᵀ, and the transposes of the last two.


def _input_sums(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _kernel_sums(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _result_sums(a, b, c, d):
    return a + b + c, b - c - d


def _kernel_sums_back(a, b, c, d):
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _result_sums_back(a, b):
    return a, a + b, a - b, -b
