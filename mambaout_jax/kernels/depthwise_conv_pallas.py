# SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution and its gradients for NVIDIA GPUs, Hopper or newer, in Mosaic GPU.

A block is one warpgroup and one thread a channel of one image: 128 channels of an image, or 64, 32
or 16 channels of 2, 4 or 8 images, whichever leaves the fewest threads idle. All threads are at the
same pixel, and those of one image at neighbouring channels, so that every access to the maps is
coalesced. A block walks down a strip of up to 8 columns, one row of x after the other, and keeps in
registers all that a row of x meets: the taps and KH rows of unfinished sums (`_conv_kernel`), or
the sums over pixels of every tap and KH rows of dy (`_kernel_gradient_kernel`). Threads share
nothing, so there is no shared memory and no barrier.

In bfloat16 a 7x7 kernel needs as much time to move its bytes at 3 TB/s as for its multiply-adds
at the peak of an H100 (51 and 56 us for 128 x 56 x 56 x 96), so neither may wait for the other:

- A row of the strip is 14 loads for 392 multiply-adds, and the next row is loaded before they
  start. Neighbouring strips read 6 of these 14 columns too, which caches should serve.
- The rows of zeros above and below the map are never walked: 6 of 13 at 7 x 7 pixels.
- A block writes its sums of every tap's gradient once, and they are added outside. There are no
  atomics, so that results are the same bits in every run.
- Where the tiles do not divide C or W, the last one overlaps its neighbour: both write the same
  values there, and the kernel's gradient leaves out the columns that were added before.

Maps are padded and copied only where they have fewer channels than a block has of one image. That
is below 16 channels, whose 32 bytes in bfloat16 are the least that caches move; and below 128, 64
or 32 channels in batches that 2, 4 or 8 do not divide, such as a lone image.

A block holds a whole column of rows, so that small batches of large maps leave multiprocessors
idle (8 x 56 x 56 x 96 has 42 blocks). At 7x7 NVIDIA's compiler gives a thread at most 168
registers, which lets three blocks onto a multiprocessor, and of 62 instructions for a number of y
(72 for one of the kernel's gradient) 49 are the multiply-adds: `aot.gpu_kernels` counts them, see
experiments/results/machine_code_h100.json. Square kernels spill no registers up to 13x13; a few
others do, such as 13x11.

Not run on an accelerator so far: tests interpret the kernels on CPUs and lower them. On several
devices each runs its own images (`partition`).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import run_where_lowered
from mambaout_jax.kernels.partition import split_by_batch

_THREADS = 128  # of a block: a warpgroup
_CHANNELS = (128, 64, 32, 16)  # of an image in a block; the rest of its threads have other images
_MAX_WIDTH = 8  # columns of a strip; with a 7x7 kernel three blocks fit on a multiprocessor
_MAX_VALUES = 245  # that a thread keeps, as at 11x11 with 8 columns; it has 255 registers
_BLOCKS = 264  # of the kernel's gradient, if there are so many strips: two per multiprocessor

_PARAMS = plgpu.CompilerParams(
    unsafe_no_auto_barriers=True,  # no thread reads what another has written
    lowering_semantics=plgpu.LoweringSemantics.Lane,  # element i of a (128,) vector in thread i
)

_MESSAGE = (
    'depthwise_conv(implementation="pallas") was lowered for {platforms}, but needs an NVIDIA GPU '
    '(Hopper or newer); use implementation="auto"'
)


def conv_pallas(
    x: Float[Array, "B H W C"], kernel: Float[Array, "KH KW C"]
) -> Float[Array, "B H W C"]:
    """Convolves every channel with its own kernel; stride 1, zeros around the map.

    Args:
        x: feature maps, of any float dtype up to float32.
        kernel: in the dtype of `x`; KH and KW are odd.

    Returns:
        Maps in the dtype of `x`, added up in float32.

    Raises:
        ValueError: float64, more taps than the registers of a thread hold (13 x 13 fit, 15 x 15 do
            not), or, when the program is lowered, a platform that is no NVIDIA GPU. (GPUs older
            than Hopper are told apart by their compiler only.)
    """
    _check(x, kernel)
    return _split_conv(x, kernel)


def gradients_pallas(
    x: Float[Array, "B H W C"], kernel: Float[Array, "KH KW C"], dy: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W C"], Float[Array, "KH KW C"]]:
    """Gradients of Σ dy · conv_pallas(x, kernel) with respect to x and kernel; raises the same."""
    _check(x, kernel)
    dkernel = _split_kernel_gradient(x, dy, kernel.shape[:2])
    return _split_conv(dy, kernel[::-1, ::-1]), dkernel.astype(x.dtype)


def _check(x, kernel):
    if x.dtype == jnp.float64:
        raise ValueError(
            'depthwise_conv(implementation="pallas") got float64, but its kernels add up in '
            'float32; cast x and kernel, or use implementation="lax"'
        )
    KH, KW, _ = kernel.shape
    if _values(1, (KH, KW)) > _MAX_VALUES:
        raise ValueError(
            f'depthwise_conv(implementation="pallas") got {KH} x {KW} taps that meet the map, more '
            'than the registers of a thread hold; use implementation="lax"'
        )


def _split_conv(x, kernel):
    run = functools.partial(run_where_lowered, {"cuda": _conv}, _MESSAGE)
    return split_by_batch(run, whole=(1,))(x, kernel)


def _split_kernel_gradient(x, dy, kernel_size):
    body = functools.partial(_kernel_gradient, kernel_size=kernel_size)
    run = functools.partial(run_where_lowered, {"cuda": body}, _MESSAGE)
    return split_by_batch(run, add_up=True)(x, dy)


# The functions below are jitted so that the layers of a model which agree in shape are traced once.


@jax.jit
def _conv(x, kernel):
    B, _, W, C = x.shape
    images, lanes = tile_of(B, C)
    x, kernel = _at_least(lanes, x), _at_least(lanes, kernel)
    strips, width = _strips(W, kernel.shape[:2])
    y = plgpu.kernel(
        functools.partial(_conv_kernel, width),
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(B // images, strips, -(-x.shape[3] // lanes)),
        grid_names=("group", "strip", "tile"),
        compiler_params=_PARAMS,
    )(x, jnp.broadcast_to(kernel, (images, *kernel.shape)))
    return y[..., :C]


def _conv_kernel(width, x, kernel, y):
    """Row h of x adds to the rows h + KH // 2 - i of y, by the taps of row i.

    The kernel is there once for every image of the block, in which threads find their own.
    """
    (_, H, W, C), (images, KH, KW, _) = x.shape, kernel.shape
    margin, channels = KH // 2, _channels(C, images)
    batch = pl.ds(lax.axis_index("group") * images, images)
    start = _start(lax.axis_index("strip"), width, W)
    taps = [[_float32(kernel[:, i, j, channels]) for j in range(KW)] for i in range(KH)]
    load = functools.partial(_load_window, x, batch, start, width, KW // 2, channels)

    def write(row, sums):
        for t in range(width):
            y[batch, row, start + t, channels] = sums[t].astype(y.dtype)

    def add_row(h, carry):
        unfinished, window = carry
        following = load(jnp.minimum(h + 1, H - 1))
        window = [_float32(value) for value in window]
        rows = [(0.0,) * width, *unfinished]
        for i in range(KH):
            rows[i] = tuple(
                sum((taps[i][j] * window[t + j] for j in range(KW)), start=rows[i][t])
                for t in range(width)
            )
        pl.when(h >= margin)(lambda: write(h - margin, rows[-1]))
        return tuple(rows[:-1]), following

    # A zero made from data has the layout that the loop expects.
    nothing = ((taps[0][0] * 0,) * width,) * (KH - 1)
    unfinished, _ = lax.fori_loop(0, H, add_row, (nothing, load(0)))
    for below in range(min(margin, H)):  # what the last row of x has left unfinished
        write(H - 1 - below, unfinished[margin + below])


@functools.partial(jax.jit, static_argnames="kernel_size")
def _kernel_gradient(x, dy, kernel_size):
    """Blocks add up one or more strips each; their sums are added here, and stay float32."""
    B, _, W, C = x.shape
    images, lanes = tile_of(B, C)
    x, dy = _at_least(lanes, x), _at_least(lanes, dy)
    strips, width = _strips(W, kernel_size)
    tiles, total = -(-x.shape[3] // lanes), B // images * strips
    most = max(1, total * tiles // _BLOCKS)
    strips_per_block = next(n for n in range(most, 0, -1) if total % n == 0)
    blocks = total // strips_per_block
    sums = plgpu.kernel(
        functools.partial(_kernel_gradient_kernel, width, strips_per_block),
        out_type=jax.ShapeDtypeStruct((blocks, images, *kernel_size, x.shape[3]), jnp.float32),
        grid=(blocks, tiles),
        grid_names=("block", "tile"),
        compiler_params=_PARAMS,
    )(x, dy)
    return sums.sum(axis=(0, 1))[..., :C]


def _kernel_gradient_kernel(width, strips_per_block, x, dy, sums):
    """Row h of x meets the rows h + KH // 2 - i of dy, for the taps of row i."""
    (_, H, W, C), (_, images, KH, KW, _) = x.shape, sums.shape
    margin, block, channels = KH // 2, lax.axis_index("block"), _channels(C, images)
    strips = -(-W // width)

    def add_strip(n, totals):
        index = block * strips_per_block + n
        batch = pl.ds(lax.div(index, strips) * images, images)
        strip = lax.rem(index, strips)
        start = _start(strip, width, W)
        load = functools.partial(_load_window, x, batch, start, width, KW // 2, channels)

        def load_dy(row):
            """Zeros outside of the map, and where the strip overlaps its neighbour."""
            inside, row = (row >= 0) & (row < H), jnp.clip(row, 0, H - 1)
            return tuple(
                jnp.where(
                    inside & (start + t >= strip * width), dy[batch, row, start + t, channels], 0
                )
                for t in range(width)
            )

        def add_row(h, carry):
            totals, dy_rows, dy_row, window = carry
            following = load(jnp.minimum(h + 1, H - 1))
            # Without this choice the compiler makes the loads when the next row needs them.
            following = tuple(jnp.where(h + 1 < H, value, 0) for value in following)
            following = load_dy(h + 1 + margin), following
            window = [_float32(value) for value in window]
            dy_rows = (tuple(_float32(value) for value in dy_row), *dy_rows)
            totals = tuple(
                tuple(
                    sum((dy_rows[i][t] * window[t + j] for t in range(width)), start=totals[i][j])
                    for j in range(KW)
                )
                for i in range(KH)
            )
            return totals, dy_rows[:-1], *following

        above = tuple(tuple(_float32(value) for value in load_dy(margin - i)) for i in range(1, KH))
        return lax.fori_loop(0, H, add_row, (totals, above, load_dy(margin), load(0)))[0]

    zero = _float32(x[pl.ds(0, images), 0, 0, channels]) * 0
    totals = lax.fori_loop(0, strips_per_block, add_strip, ((zero,) * KW,) * KH)
    for i in range(KH):
        for j in range(KW):
            sums[block, :, i, j, channels] = totals[i][j]


def _load_window(x, batch, start, width, margin, channels, row):
    """The row's columns from start - margin to start + width + margin; zeros outside of the map."""
    W = x.shape[2]

    def load(k):
        column = start + (k - margin)
        if margin <= k < margin + width:
            return x[batch, row, column, channels]
        value = x[batch, row, jnp.clip(column, 0, W - 1), channels]
        return jnp.where((column >= 0) & (column < W), value, 0)

    return tuple(load(k) for k in range(width + 2 * margin))


def _strips(W, kernel_size):
    """Their number and width, chosen so that the last one overlaps its neighbour the least."""
    widths = range(_MAX_WIDTH, 0, -1)
    widest = next(width for width in widths if _values(width, kernel_size) <= _MAX_VALUES)
    strips = -(-W // widest)
    return strips, -(-W // strips)


def _values(width, kernel_size):
    """That a thread keeps: one per tap, KH rows of the strip, and two rows of x.

    With several taps in a row the first one's multiply-add moves a sum on to the next row of sums;
    with one tap the compiler copies them all, and both copies take registers.
    """
    KH, KW = kernel_size
    copies = 2 if KW == 1 else 1
    return KH * KW + copies * KH * width + 2 * (width + KW - 1)


def _start(strip, width, W):
    return jnp.minimum(strip * width, W - width)


def tile_of(B, C):
    """Images and channels of a block that leave the fewest of its threads idle.

    Where two do, the one that needs no padding, and then the one with more channels.
    """
    possible = [lanes for lanes in _CHANNELS if B % (_THREADS // lanes) == 0]
    lanes = min(possible, key=lambda lanes: (-(-C // lanes) * lanes, lanes > C))
    return _THREADS // lanes, lanes


def _channels(C, images):
    lanes = _THREADS // images
    return pl.ds(jnp.minimum(lax.axis_index("tile") * lanes, C - lanes), lanes)


def _at_least(lanes, x):
    missing = lanes - x.shape[-1]
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, missing))) if missing > 0 else x


def _float32(x):
    return x.astype(jnp.float32)
