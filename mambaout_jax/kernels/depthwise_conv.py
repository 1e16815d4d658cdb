# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution of feature maps, with a weight gradient that is fast on CPUs.

XLA:CPU has no depthwise code path: it runs the forward as a grouped convolution without
specialisation and lowers the weight gradient to a *dense* convolution, C times the work and memory.
Written as a sum over kernel taps of shifted maps (`"shift"`), the operation and both its gradients
become plain fused loops: forward and backward together run 34 to 44 times faster at the shapes of
MambaOut's stages. Kernel gradients are never formed tap by tap, which would read both maps KH * KW
times.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.kernels.depthwise_conv_pallas import conv_pallas, gradients_pallas
from mambaout_jax.kernels.dispatch import (
    Operation,
    by_platform,
    is_known,
    vary_alike,
)
from mambaout_jax.kernels.phases import from_phases, phases

# All taps of up to a 9x9 kernel go into one fused loop. Larger sums are slow to run and to compile
# (10 and 20 times at 31x31): they are added in groups of kernel rows, of about so many taps each.
_MAX_FUSED_TAPS = 81
_TAPS_PER_STEP = 32

# Pixels that lie a multiple of so many bytes apart drive each other out of the first cache, so that
# maps are stored with some more channels: half the time for 384 channels, a fifth for 512.
_COLLIDING_BYTES = {"map": 512, "gradient": 1024}
_EXTRA_CHANNELS = 16

# Pixels of dy that the kernel's gradient adds per step, in tiles of at most so many columns. Fewer
# than 18 take up to 5 times as long, more than 28 up to half as long again.
_PIXELS_PER_STEP = 28
_TILE_WIDTH = 14


def depthwise_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "KH KW C"],
    *,
    dilation: int = 1,
    implementation: str = "auto",
) -> Float[Array, "B H W C"]:
    """Convolves every channel with its own kernel; stride 1, zeros around the map.

        y[b, h, w, c] = Σ_ij kernel[i, j, c] · x[b, h + (i - KH // 2) d, w + (j - KW // 2) d, c]

    (a cross-correlation, as in every deep learning library), with a dilation of d.

    Args:
        x: feature maps.
        kernel: KH and KW are odd, of any size, also larger than the map.
        dilation: pixels from one tap to the next.
        implementation: `"lax"`, XLA's grouped convolution; `"shift"`, a sum over taps with its own
            gradient, written for XLA:CPU; `"pallas"`, kernels for NVIDIA GPUs, Hopper or newer, up
            to 13 x 13 taps, not yet run on one; `"auto"`, on CPUs `"shift"`, which was measured to
            be the fastest, and elsewhere `"lax"`: no GPU or TPU has been measured yet. `"auto"`
            asks for the platform that the program is lowered for and not for the default device, so
            that the choice is right in ahead-of-time compilation and export, also for several
            platforms at once. Within `plain_implementations` it is `"lax"`.

    Returns:
        Maps in the promoted dtype of `x` and `kernel`. `"shift"` adds up in float32, or float64 for
        float64 inputs; `"pallas"` in float32; `"lax"` leaves the precision of products to
        `jax_default_matmul_precision`. Gradients have the dtypes of `x` and `kernel`. `"lax"` can
        be differentiated in every way, `"shift"` in reverse mode only, `"pallas"` so and once.

    Raises:
        ValueError: unknown implementation, or one that is not plain within
            `plain_implementations`; wrong rank or dtype, even kernel side, a dilation that is no
            whole number of 1 or more, or `x` and `kernel` differ in their channels. `"pallas"`:
            float64, too many taps, or, when the program is lowered, another platform than an NVIDIA
            GPU.
    """
    _check(x, kernel, dilation)
    dtype = jnp.result_type(x, kernel)
    kernel = _crop(kernel, (x.shape[1], x.shape[2]), dilation)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return _OPERATION.run(implementation, x, kernel, dilation=dilation)


def _check(x: jax.Array, kernel: jax.Array, dilation: int) -> None:
    shapes = f"depthwise_conv got x {x.dtype}{x.shape} and kernel {kernel.dtype}{kernel.shape}: "
    if x.ndim != 4 or kernel.ndim != 3:
        raise ValueError(shapes + "x must be (B, H, W, C) and kernel (KH, KW, C)")
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(shapes + "both must have the same number of channels, their last axis")
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(shapes + "KH and KW must be odd, so that padding K // 2 keeps the size")
    if not jnp.issubdtype(jnp.result_type(x, kernel), jnp.floating):
        raise ValueError(shapes + "the dtype must be floating; cast x or kernel first")
    if not isinstance(dilation, int) or dilation < 1:
        raise ValueError(f"{shapes}dilation={dilation!r} must be a whole number of 1 or more")


def _crop(kernel: jax.Array, size: tuple[int, int], dilation: int) -> jax.Array:
    """Drops the taps that meet nothing but padding, in a map no larger than half the kernel."""

    def met(taps, pixels):
        reach = (pixels - 1) // dilation if is_known(pixels) else taps // 2
        return slice(max(0, taps // 2 - reach), taps // 2 + reach + 1)

    return kernel[tuple(map(met, kernel.shape, size))]


def _conv_lax(x, kernel, dilation):
    KH, KW, C = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],  # (KH, KW, 1, C)
        window_strides=(1, 1),
        padding=((KH // 2 * dilation,) * 2, (KW // 2 * dilation,) * 2),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=C,
    )


def _with_gradients(conv, gradients):
    """conv(x, kernel, dilation) whose gradients are gradients(x, kernel, dy, dilation)."""
    conv_vjp = jax.custom_vjp(conv, nondiff_argnums=(2,))
    # The forward rule calls conv_vjp, not conv: otherwise models with rematerialised blocks trace
    # derivatives of the loops inside, which takes twice as long.
    conv_vjp.defvjp(
        lambda x, kernel, dilation: (conv_vjp(x, kernel, dilation), (x, kernel)),
        lambda dilation, residuals, dy: gradients(*residuals, dy, dilation),
    )
    return conv_vjp


def _conv_shift(x, kernel, dilation):
    if kernel.shape[:2] == (1, 1):
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return (x.astype(dtype) * kernel.astype(dtype)[None]).astype(x.dtype)
    return _add_shifted(x, kernel, dilation)


def _gradients_lax(x, kernel, dy, dilation):
    _, vjp = jax.vjp(functools.partial(_conv_lax, dilation=dilation), x, kernel)
    return vjp(dy)


def _gradients_shift(x, kernel, dy, dilation):
    if not is_known(*x.shape[1:3]):  # tiles have to be known when the program is traced
        return _gradients_lax(x, kernel, dy, dilation)
    dx = _conv_shift(dy, kernel[::-1, ::-1], dilation)
    return dx, _kernel_gradient(x, dy, kernel.shape[:2], dilation)


def _conv_pallas(x, kernel, dilation):
    y = conv_pallas(phases(x, dilation), kernel)
    return from_phases(y, dilation, x.shape[1:3])


def _gradients_pallas(x, kernel, dy, dilation):
    dx, dkernel = gradients_pallas(phases(x, dilation), kernel, phases(dy, dilation))
    return from_phases(dx, dilation, x.shape[1:3]), dkernel


_conv_by_platform = by_platform(cpu=_conv_shift, default=_conv_lax)
_gradients_by_platform = by_platform(cpu=_gradients_shift, default=_gradients_lax)


def _conv_auto(x, kernel, dilation):
    return _conv_by_platform(x, kernel, dilation=dilation)


def _gradients_auto(x, kernel, dy, dilation):
    return _gradients_by_platform(x, kernel, dy, dilation=dilation)


# "shift" is 3 to 95 times faster on CPUs than "lax" forward, and 3 to 69 times with gradients, at
# maps of 2 to 224 pixels, 1 to 1024 channels, kernels of 3 to 31 and dilations up to 3: see
# experiments/results/conv_cpu_sweep.json. The same benchmark on a GPU or TPU belongs in this table.
_OPERATION = Operation(
    "depthwise_conv",
    {
        "lax": _conv_lax,
        "shift": _with_gradients(_conv_shift, _gradients_shift),
        "pallas": _with_gradients(_conv_pallas, _gradients_pallas),
    },
    auto=_with_gradients(_conv_auto, _gradients_auto),
    plain=("lax",),
)
IMPLEMENTATIONS = _OPERATION.implementations


# The functions below are jitted so that the layers of a model which agree in shape are traced once.


@functools.partial(jax.jit, static_argnums=2)
def _add_shifted(x, kernel, dilation):
    """Σ_ij kernel[i, j] · (padded x)[i d : i d + H, j d : j d + W].

    With dy and the flipped kernel: dx.
    """
    (KH, KW, C), (B, H, W, _) = kernel.shape, x.shape
    rows = KH if KH * KW <= _MAX_FUSED_TAPS else max(1, _TAPS_PER_STEP // KW)
    steps = -(-KH // rows)
    extra = steps * rows - KH
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    apart = _channels_to_add(C, dtype, "map")
    taps = jnp.pad(kernel.astype(dtype), ((0, extra), (0, 0), (0, apart)))
    taps = taps.reshape(steps, rows, KW, C + apart)
    above, left = KH // 2 * dilation, KW // 2 * dilation
    padding = ((0, 0), (above, above + extra * dilation), (left, left), (0, apart))
    padded = jnp.pad(x.astype(dtype), padding)

    def add_up(padded, taps):
        def add_rows(step, y):
            height, first = (rows - 1) * dilation + H, step * rows * dilation
            window = lax.dynamic_slice_in_dim(padded, first, height, axis=1)
            for i in range(rows):
                for j in range(KW):
                    down, across = i * dilation, j * dilation
                    pixels = lax.slice(window, (0, down, across, 0), (B, down + H, across + W, C))
                    tap = lax.dynamic_slice(taps, (step, i, j, 0), (1, 1, 1, C))
                    y = y + tap * pixels  # (B, H, W, C)
            return y

        y = vary_alike(jnp.zeros(x.shape, dtype), like=x)
        return lax.fori_loop(0, steps, add_rows, y).astype(x.dtype)

    def nothing(padded, taps):
        return vary_alike(jnp.zeros_like(x), like=x)

    # A fence. Otherwise XLA:CPU moves the padding behind the slices and evaluates whatever computes
    # x once per tap, and the sum once per consumer (20 times slower in a stack of layers). Around
    # the branch of a condition that it cannot decide it computes inputs and output exactly once;
    # optimization_barrier alone does not keep the output apart in every supported version.
    always = lax.optimization_barrier(jnp.array(True))
    return lax.cond(always, add_up, nothing, padded, taps)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _kernel_gradient(x, dy, kernel_size, dilation):
    """dkernel[i, j] = Σ_bhw dy[b, h, w] · (padded x)[b, h + i d, w + j d].

    A convolution of x with dy as its kernel: every pixel of dy adds one kernel-shaped window of x.
    Every image has accumulators of its own: threads and devices can share them out, and the batch
    axis is never split into groups, which would move a sharded batch between devices.
    """
    (KH, KW), (B, H, W, C) = kernel_size, x.shape
    tiles_wide = -(-W // _TILE_WIDTH)
    tile_w = -(-W // tiles_wide)
    tile_h = min(H, -(-_PIXELS_PER_STEP // tile_w))
    tiles_high = -(-H // tile_h)
    below, right = tiles_high * tile_h - H, tiles_wide * tile_w - W
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    apart = _channels_to_add(C, dtype, "gradient")
    above, left = KH // 2 * dilation, KW // 2 * dilation
    padding = ((0, 0), (above, above + below), (left, left + right), (0, apart))
    padded = jnp.pad(x.astype(dtype), padding)
    grad = jnp.pad(dy.astype(dtype), ((0, 0), (0, below), (0, right), (0, apart)))

    def add_tile(tile, acc):
        start = (0, tile // tiles_wide * tile_h, tile % tiles_wide * tile_w, 0)
        size = (B, tile_h + 2 * above, tile_w + 2 * left, C + apart)
        window = lax.dynamic_slice(padded, start, size)
        pixels = lax.dynamic_slice(grad, start, (B, tile_h, tile_w, C + apart))
        for h in range(tile_h):
            for w in range(tile_w):
                pixel = lax.slice(pixels, (0, h, w, 0), (B, h + 1, w + 1, C + apart))
                last = (B, h + 2 * above + 1, w + 2 * left + 1, C + apart)
                taps = lax.slice(window, (0, h, w, 0), last, (1, dilation, dilation, 1))
                acc = acc + taps * pixel  # (B, KH, KW, channels)
        return acc

    acc = vary_alike(jnp.zeros((B, KH, KW, C + apart), dtype), like=x)
    acc = lax.fori_loop(0, tiles_high * tiles_wide, add_tile, acc)
    return acc[..., :C].sum(axis=0).astype(x.dtype)  # (KH, KW, C)


def _channels_to_add(C, dtype, array):
    return 0 if C * dtype.itemsize % _COLLIDING_BYTES[array] else _EXTRA_CHANNELS
