# SPDX-License-Identifier: Apache-2.0
"""Convolutions over all channels: stems, patch embeddings, downsampling layers, dense heads.

Images have so few channels that XLA:CPU's convolution runs at a third of the speed of a matrix
product over patches; at 24 channels patches already cost more than they save. Where windows do not
overlap, patches are a mere reshape, whatever the channels. These forms are differentiated
automatically.

With many channels, 3 x 3 convolutions of stride 1 are short products there (`winograd`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import (
    Operation,
    by_platform,
    is_known,
    plain_gradients,
)
from mambaout_jax.kernels.winograd import winograd_conv, winograd_gradients

_MAX_PATCH_CHANNELS = 4
# Below either, what the convolution gains its gradients lose to XLA's own, or more.
_MANY_PIXELS = 1000
_MANY_CHANNELS = 128


def strided_conv(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "KH KW I F"],
    *,
    stride: int,
    padding: int = 0,
) -> Float[Array, "B _ _ F"]:
    """Convolves maps with one kernel for all channels, at every `stride`-th pixel.

        y[b, h, w] = Σ_ij x[b, stride · h + i - padding, stride · w + j - padding] · kernel[i, j]

    with zeros around the map. Counts as PyTorch does: H becomes (H + 2 · padding - KH) // stride
    + 1, and rows or columns that fill no whole window are left out. (JAX's "SAME" would pad even
    sizes by (0, 1), half a pixel off.)

    Args:
        x: maps.
        kernel: in the dtype of `x`.
        stride: pixels from one window to the next, in both directions.
        padding: rows and columns of zeros on every side.

    Returns:
        Maps in the dtype of `x`. Differentiable in every way, but where 3 x 3 windows, stride 1 and
        many channels come together in forward mode only within `plain_implementations`.

    Raises:
        ValueError: wrong ranks, different channels or dtypes, a dtype that is not floating, a
            stride below 1, a negative padding, or a kernel larger than the padded map; of an image,
            also than one may be whose size is a symbol of `jax.export`.
    """
    _check(x, kernel, stride, padding)
    if kernel.shape[:2] == (stride, stride) and padding == 0:
        return _DISJOINT.run("auto", x, kernel, stride=stride, padding=padding)
    if x.shape[3] <= _MAX_PATCH_CHANNELS:
        _check_symbols(x, kernel, stride, padding)
        return _FEW_CHANNELS.run("auto", x, kernel, stride=stride, padding=padding)
    if _is_short(x, kernel, stride, padding):
        return _SHORT.run("auto", x, kernel, stride=stride, padding=padding)
    return _conv(x, kernel, stride, padding)


def _check(x, kernel, stride, padding):
    shapes = f"strided_conv got x {x.dtype}{x.shape} and kernel {kernel.dtype}{kernel.shape}: "
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(shapes + "x must be (B, H, W, I) and kernel (KH, KW, I, F)")
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(shapes + "the last axis of x and the third of kernel must be equal")
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(shapes + "both must have the same floating dtype; cast one of them first")
    if stride < 1 or padding < 0:
        raise ValueError(
            f"strided_conv got stride={stride} and padding={padding}; "
            "the stride must be at least 1 and the padding at least 0"
        )
    if any(
        is_known(n) and k > n + 2 * padding
        for k, n in zip(kernel.shape[:2], x.shape[1:3], strict=True)
    ):
        raise ValueError(
            shapes + f"with padding={padding} the map is smaller than the kernel; "
            "use larger images or more padding"
        )


def _check_symbols(x, kernel, stride, padding):
    """Raises ValueError where symbols of `jax.export` may stand for less than one window."""
    for side, size in zip(kernel.shape[:2], x.shape[1:3], strict=True):
        try:
            bool(stride * (_windows(size, side, stride, padding) - 1) + 1 >= 0)
        except jax.errors.InconclusiveDimensionOperation as error:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels are not known to hold a kernel of "
                f"{kernel.shape[0]} x {kernel.shape[1]} with padding={padding}; write the symbols "
                f"as multiples, such as {stride}*h"
            ) from error


def _windows(size, side, stride, padding):
    """Windows along an axis; written so that symbols of `jax.export` cancel."""
    return (size + 2 * padding - side + stride) // stride


def _conv(x, kernel, stride, padding):
    if not is_known(*x.shape[1:3]):  # gradients need to know what a convolution leaves out
        if kernel.shape[:2] == (stride, stride) and padding == 0:
            return _product(x, kernel, stride, padding)
        sides = [
            stride * (_windows(n, k, stride, padding) - 1) + k
            for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        ]
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        x, padding = x[:, : sides[0], : sides[1]], 0
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(x, kernel, stride, padding):
    """The same by one matrix product over windows, copied out tap by tap."""
    KH, KW, _, F = kernel.shape
    rows = _windows(x.shape[1], KH, stride, padding)
    columns = _windows(x.shape[2], KW, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down = stride * (rows - 1) + 1
    across = stride * (columns - 1) + 1
    taps = [
        x[:, i : i + down : stride, j : j + across : stride] for i in range(KH) for j in range(KW)
    ]
    windows = jnp.concatenate(taps, axis=-1).reshape(-1, KH * KW * x.shape[-1])
    return (windows @ kernel.reshape(-1, F)).reshape(x.shape[0], rows, columns, F)


def _product(x, kernel, stride, padding):
    """The same for windows that do not overlap."""
    del padding  # none
    (B, H, W, I), F = x.shape, kernel.shape[-1]  # noqa: E741
    rows, columns = H // stride, W // stride
    windows = x[:, : rows * stride, : columns * stride]
    windows = windows.reshape(B, rows, stride, columns, stride, I)
    patches = windows.swapaxes(2, 3).reshape(B * rows * columns, stride * stride * I)
    return (patches @ kernel.reshape(-1, F)).reshape(B, rows, columns, F)


_FEW_CHANNELS = Operation(
    "strided_conv",
    {"lax": _conv, "patches": _patches},
    auto=by_platform(cpu=_patches, default=_conv),
    plain=("lax", "patches"),
)
_DISJOINT = Operation(
    "strided_conv",
    {"lax": _conv, "product": _product},
    auto=by_platform(cpu=_product, default=_conv),
    plain=("lax", "product"),
)


def _is_short(x, kernel, stride, padding):
    """Whether short products save time on CPUs."""
    if not is_known(*x.shape) or stride != 1 or kernel.shape[:2] != (3, 3) or padding > 2:
        return False
    pixels = x.shape[0] * math.prod(n + 2 * padding - 2 for n in x.shape[1:3])
    return min(kernel.shape[2:]) >= _MANY_CHANNELS and pixels >= _MANY_PIXELS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _short(x, kernel, stride, padding):
    return _short_values(x, kernel, stride=stride, padding=padding)


def _winograd(x, kernel, stride, padding):
    return winograd_conv(x, kernel, padding)


def _winograd_gradients(arrays, dy, stride, padding):
    x, kernel = arrays
    return winograd_gradients(x, kernel, dy, padding)


_short_values = by_platform(cpu=_winograd, default=_conv)
_short_gradients = by_platform(cpu=_winograd_gradients, default=plain_gradients(_conv))
_short.defvjp(
    lambda x, kernel, stride, padding: (_short(x, kernel, stride, padding), (x, kernel)),
    lambda stride, padding, arrays, dy: _short_gradients(
        arrays, dy, stride=stride, padding=padding
    ),
)
_SHORT = Operation(
    "strided_conv",
    {"lax": _conv},
    auto=lambda x, kernel, stride, padding: _short(x, kernel, stride, padding),  # by position
    plain=("lax",),
)
