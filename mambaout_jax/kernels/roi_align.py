# SPDX-License-Identifier: Apache-2.0
"""RoIAlign over a feature pyramid: fixed-size crops of boxes by bilinear samples.

Mask R-CNN, arXiv:1703.06870, section 3, as in mmcv and detectron2 (`aligned=True`), whose numbers
are matched. Sampling is separable, also where the number of samples depends on the box:

    y[o, p] = Σ_hw  Y[o, h] · x[h, w] · X[p, w],    Y[o, h] = mean over the samples of bin o of
                                                    max(0, 1 - |h - sample|)

so that a crop is two small matrix products, and no shape depends on a box. `"tiles"` multiplies
only the pixels that a box covers, in tiles of fixed size: as many steps as there are tiles, known
when it runs. Its gradient adds such tiles to the maps, and keeps nothing but the boxes.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mambaout_jax.kernels.dispatch import Operation, by_platform, vary_alike

# Tiles of 8 x 8 pixels took as long for 7 x 7 outputs, and twice as long for 14 x 14.
_TILE = 16
# Tiles of an image at once, on platforms that need more work than one tile in every step.
_TILES_PER_STEP = 64
# Adaptive samples of one bin that may lie within a pixel of a given one: if there are several they
# are more than half a pixel apart, so 4, and one on either side for rounding.
_NEAR_SAMPLES = 6
_FINEST_SCALE = 56  # mmdet: boxes of up to twice so many pixels a side belong to the finest map


def roi_align(
    maps: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float[Array, "B R 4"],
    levels: Int[Array, "B R"] | None,
    output_size: int,
    *,
    strides: Sequence[int],
    sampling_ratio: int = 0,
    implementation: str = "auto",
) -> Float[Array, "B R O O C"]:
    """Crops every box from one map of a pyramid, into `output_size` x `output_size` bins.

    A bin is the mean of n x n samples (rows and columns counted apart), evenly spaced in it. Pixel
    i of a map of stride s lies at s (i + ½) in the image. A sample between pixels is interpolated
    bilinearly; one up to a pixel outside the map has the value of the border, one farther outside
    is 0. Boxes without area are 0 where samples are adaptive, boxes with a coordinate that is no
    finite number are NaN.

    Args:
        maps: the pyramid, finest first, in one floating dtype.
        boxes: x1 y1 x2 y2, in pixels of the image. No gradient flows to them.
        levels: which of the maps each box is cropped from. Boxes of a level that no map has, such
            as -1, are 0 and cost nothing. None: `mmdet_levels`.
        output_size: bins per side (O).
        strides: pixels of the image per pixel of each map.
        sampling_ratio: n; 0 takes the size of a bin in pixels of the map, rounded up (adaptive).
        implementation: `"tiles"`, products over the tiles that a box covers, in time proportional
            to the boxes' areas, with its own gradient: reverse mode only, but any number of times;
            `"matrices"`, products over whole maps, box by box: slow, and differentiable in every
            way; `"auto"`, the former, and the latter within `plain_implementations`.

    Returns:
        Crops in the dtype of the maps. All sums, also of the maps' gradients, are in float32, or
        float64 for maps of float64; coordinates are in float32, or float64 for boxes of float64.

    Raises:
        ValueError: maps that differ in batch, channels or dtype or are not floating; boxes or
            levels of other shapes or dtypes; no map, or not one stride per map; an `output_size`
            below 1, a stride below 1, a negative `sampling_ratio`; unknown implementation.
    """
    maps, strides = tuple(maps), tuple(strides)
    _check(maps, boxes, levels, output_size, strides, sampling_ratio)
    boxes = jnp.asarray(boxes)
    boxes = lax.stop_gradient(boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32)))
    levels = mmdet_levels(boxes, len(maps)) if levels is None else jnp.asarray(levels, jnp.int32)
    finite = jnp.isfinite(boxes).all(-1)
    crops = _OPERATION.run(
        implementation,
        tuple(map(jnp.asarray, maps)),
        jnp.where(finite[..., None], boxes, 0),
        jnp.where(finite, levels, -1),
        output_size=output_size,
        strides=strides,
        sampling_ratio=sampling_ratio,
    )
    return jnp.where(finite[..., None, None, None], crops, jnp.nan)


def mmdet_levels(boxes: Float[Array, "*N 4"], count: int) -> Int[Array, "*N"]:
    """The map that each box is cropped from, by mmdet's `SingleRoIExtractor.map_roi_levels`.

        level = floor(log2(√(w h) / 56 + 1e-6)), within 0 … count - 1

    by comparison with the powers of 2, which needs no logarithm and rounds nothing. Boxes without
    area belong to level 0.

    Args:
        boxes: x1 y1 x2 y2, in pixels of the image.
        count: maps, the finest of which has the stride 4.
    """
    boxes = jnp.asarray(boxes)
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    sides = boxes[..., 2:] - boxes[..., :2]
    scale = jnp.sqrt(jnp.maximum(sides[..., 0] * sides[..., 1], 0)) / _FINEST_SCALE + 1e-6
    return sum(
        ((scale >= 2**level).astype(jnp.int32) for level in range(1, count)),
        jnp.zeros(scale.shape, jnp.int32),
    )


def _check(maps, boxes, levels, output_size, strides, sampling_ratio):
    shapes = ", ".join(f"{x.dtype}{x.shape}" for x in maps)
    got = f"roi_align got maps {shapes} and boxes {boxes.dtype}{boxes.shape}: "
    if not maps or len(strides) != len(maps):
        raise ValueError(f"{got}{len(maps)} maps need as many strides, 1 or more, not {strides}")
    if any(x.ndim != 4 for x in maps) or len({(x.shape[0], x.shape[3], x.dtype) for x in maps}) > 1:
        raise ValueError(got + "maps must be (B, H, W, C) with the same B, C and dtype")
    if not jnp.issubdtype(maps[0].dtype, jnp.floating):
        raise ValueError(got + "the dtype of maps must be floating; cast them first")
    if boxes.ndim != 3 or boxes.shape[0] != maps[0].shape[0] or boxes.shape[2] != 4:
        raise ValueError(got + "boxes must be (B, R, 4), with the B of the maps")
    if levels is not None and (
        levels.shape != boxes.shape[:2] or not jnp.issubdtype(levels.dtype, jnp.integer)
    ):
        raise ValueError(
            f"{got}levels {levels.dtype}{levels.shape} must be integers (B, R), or None"
        )
    for name, value, least in (
        ("output_size", output_size, 1),
        ("sampling_ratio", sampling_ratio, 0),
        *(("strides", stride, 1) for stride in strides),
    ):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{got}{name}={value!r}; use a whole number of {least} or more")


def bin_weights(start, side, pixels, size, bins, samples):
    """The weight (bins, pixels) of each pixel in each bin, along one axis.

    Args:
        start, side: where the box begins and how long it is, in pixels of the map.
        pixels: whole numbers.
        size: of the map.
        bins, samples: `output_size` and `sampling_ratio`.
    """
    length = side / bins
    if samples:
        count = jnp.full_like(side, samples)
    else:
        count = jnp.ceil(length)
        # A compiler may multiply with the reciprocal instead of dividing: at multiples of `bins`
        # that is one sample too many or too few.
        count = count - ((count - 1) * bins >= side) + (count * bins < side)
    step = length / jnp.maximum(count, 1)
    positions = pixels.astype(side.dtype)
    starts = start + jnp.arange(bins, dtype=side.dtype) * length
    shape = (bins, pixels.shape[0], samples or _NEAR_SAMPLES)
    index = lax.broadcasted_iota(side.dtype, shape, 2)
    if not samples:
        distance = positions[None] - 1 - starts[:, None]
        near = jnp.floor(distance / jnp.where(step > 0, step, 1) - 0.5)
        index = index + jnp.maximum(near, 0)[..., None]
    at = starts[:, None, None] + (index + 0.5) * step
    inside = (index < count) & (at >= -1) & (at <= size)
    hat = 1 - jnp.abs(positions[None, :, None] - jnp.clip(at, 0, size - 1))
    total = jnp.where(inside, jnp.maximum(hat, 0), 0).sum(-1)
    return total / jnp.maximum(count, 1)


# ---- "tiles" ----


class _Work(NamedTuple):
    """The tiles of one map that are to be multiplied. Images form groups, G, with P boxes each."""

    boxes: jax.Array  # (G, P, 4) in pixels of the map
    top: jax.Array  # (G, P) the map's first row: groups of several images have their maps stacked
    first: jax.Array  # (G, P, 2) the first pixel that is needed: column, row
    across: jax.Array  # (G, P) tiles from left to right
    ends: jax.Array  # (G, P) tiles of this box and those before it


class _Tile(NamedTuple):
    """One tile of a box."""

    box: jax.Array  # its index in the group
    corner: tuple[jax.Array, jax.Array]  # row, column of the first pixel that is read
    rows: jax.Array  # (O, rows) weights
    columns: jax.Array  # (O, columns)


def _plan(boxes, levels, level, size, stride, stacked):
    """The work on a map of `size` (height, width)."""
    B, R = levels.shape
    boxes = boxes / stride - 0.5
    largest = jnp.array([size[1] - 1, size[0] - 1], jnp.int32)
    ends = jnp.stack([boxes[..., :2], boxes[..., 2:]])
    ends = jnp.floor(jnp.clip(ends, 0, largest.astype(boxes.dtype)[None, None, None]))
    ends = ends.astype(jnp.int32)  # (2, B, R, 2)
    first = ends.min(0)
    tiles = (jnp.minimum(ends.max(0) + 1, largest[None, None]) - first) // _TILE + 1
    count = jnp.where(levels == level, tiles[..., 0] * tiles[..., 1], 0)
    top = jnp.zeros_like(levels)
    if stacked:
        top = jnp.broadcast_to(jnp.arange(B, dtype=jnp.int32)[:, None] * size[0], (B, R))
    groups = (1, B * R) if stacked else (B, R)
    count = count.reshape(groups)
    return _Work(
        boxes.reshape(*groups, 4),
        top.reshape(groups),
        first.reshape(*groups, 2),
        tiles[..., 0].reshape(groups),
        jnp.cumsum(count, axis=-1, dtype=jnp.int32),
    )


def _tile(work, number, size, bins, samples):
    """Tile `number` of a group; a number beyond the last has weights 0."""
    box = (work.ends <= number).sum(dtype=jnp.int32)
    exists = box < work.ends.shape[0]
    box = jnp.minimum(box, work.ends.shape[0] - 1)
    number = number - jnp.where(box > 0, work.ends[box - 1], 0)
    down, right = number // work.across[box], number % work.across[box]

    def axis(begin, end, first, size):
        # The last tile may end outside the map: it is moved inside, where its first pixels are
        # another tile's.
        length = min(_TILE, size)
        corner = jnp.clip(first, 0, size - length)
        pixels = corner + jnp.arange(length, dtype=jnp.int32)
        weights = bin_weights(begin, end - begin, pixels, size, bins, samples)
        return corner, jnp.where((exists & (pixels >= first))[None], weights, 0)

    x1, y1, x2, y2 = work.boxes[box]
    row, rows = axis(y1, y2, work.first[box, 1] + down * _TILE, size[0])
    column, columns = axis(x1, x2, work.first[box, 0] + right * _TILE, size[1])
    return _Tile(box, (work.top[box] + row, column), rows, columns)


def _walk(body, carry, work, size, bins, samples, per_step, dtype):
    """Runs `body(carry, tiles)` over all tiles; its tiles have the axes (G, tiles of a step)."""
    pick = functools.partial(_tile, size=size, bins=bins, samples=samples)
    pick = jax.vmap(jax.vmap(pick, (None, 0)), (0, None))

    def step(i, carry):
        tiles = pick(work, i * per_step + jnp.arange(per_step, dtype=jnp.int32))
        return body(
            carry,
            tiles._replace(rows=tiles.rows.astype(dtype), columns=tiles.columns.astype(dtype)),
        )

    steps = (work.ends[:, -1].max() + per_step - 1) // per_step
    return lax.fori_loop(jnp.int32(0), steps, step, vary_alike(carry, like=work))


def _start(at, ndim):
    return (*at, *(jnp.int32(0) for _ in range(ndim - len(at))))


def _read(x, at, shape):
    """Windows (G, tiles, *shape) of `x` (G, …), whose first pixels are `at`, of (G, tiles) each."""

    def read(x, *at):
        return lax.dynamic_slice(x, _start(at, x.ndim), shape)

    if at[0].shape == (1, 1):
        return read(x[0], *(i[0, 0] for i in at))[None, None]
    return jax.vmap(lambda x, *at: jax.vmap(functools.partial(read, x))(*at))(x, *at)


def _add(x, at, windows):
    """`x` with windows added, which may overlap; the counterpart of `_read`."""
    if at[0].shape == (1, 1):
        start = _start((jnp.int32(0), *(i[0, 0] for i in at)), x.ndim)
        window = windows[0]
        return lax.dynamic_update_slice(
            x, lax.dynamic_slice(x, start, window.shape) + window, start
        )
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, x.ndim)),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=tuple(range(len(at))),
    )
    add = functools.partial(lax.scatter_add, dimension_numbers=numbers, mode="clip")
    return jax.vmap(add)(x, jnp.stack(at, -1), windows)


def _einsum(equation, *arrays):
    return jnp.einsum(equation, *arrays, precision=lax.Precision.HIGHEST)


def _crop_tiles(maps, boxes, levels, *, output_size, strides, sampling_ratio, stacked):
    """The crops. If `stacked`, all images are one group, whose tiles are multiplied one by one."""
    dtype = jnp.promote_types(maps[0].dtype, jnp.float32)
    (B, R), C, O = levels.shape, maps[0].shape[-1], output_size  # noqa: E741
    crops = jnp.zeros((1, B * R, O, O, C) if stacked else (B, R, O, O, C), dtype)
    for level, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        size = x.shape[1:3]
        work = _plan(boxes, levels, level, size, stride, stacked)
        x = x.reshape(1, -1, *x.shape[2:]) if stacked else x

        def add(crops, tiles, x=x, size=size):
            shape = (min(_TILE, size[0]), min(_TILE, size[1]), C)
            pixels = _read(x, tiles.corner, shape).astype(dtype)
            lines = _einsum("gtoh,gthwc->gtowc", tiles.rows, pixels)
            bins = _einsum("gtpw,gtowc->gtopc", tiles.columns, lines)
            return _add(crops, (tiles.box,), bins[:, :, None])

        per_step = 1 if stacked else _TILES_PER_STEP
        crops = _walk(add, crops, work, size, O, sampling_ratio, per_step, dtype)
    return crops.reshape(B, R, O, O, C).astype(maps[0].dtype)


def _map_gradients(dy, boxes, levels, *, shapes, output_size, strides, sampling_ratio, stacked):
    """The gradients of the maps, of these shapes, for that of the crops."""
    dtype = jnp.promote_types(dy.dtype, jnp.float32)
    C, O = dy.shape[-1], output_size  # noqa: E741
    grouped = dy.reshape(1, -1, O, O, C) if stacked else dy
    gradients = []
    for level, (shape, stride) in enumerate(zip(shapes, strides, strict=True)):
        size = shape[1:3]
        work = _plan(boxes, levels, level, size, stride, stacked)

        def add(dx, tiles):
            bins = _read(grouped, (tiles.box,), (1, O, O, C))[:, :, 0].astype(dtype)
            lines = _einsum("gtpw,gtopc->gtowc", tiles.columns, bins)
            return _add(dx, tiles.corner, _einsum("gtoh,gtowc->gthwc", tiles.rows, lines))

        dx = jnp.zeros((1, shape[0] * size[0], size[1], C) if stacked else shape, dtype)
        per_step = 1 if stacked else _TILES_PER_STEP
        dx = _walk(add, dx, work, size, O, sampling_ratio, per_step, dtype)
        gradients.append(dx.reshape(shape).astype(dy.dtype))
    return tuple(gradients)


def _for_platforms(function):
    # Accelerators: not yet measured. Images stay apart there, so that they may lie on several.
    return by_platform(
        cpu=functools.partial(function, stacked=True),
        default=functools.partial(function, stacked=False),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _tiles(maps, boxes, levels, shapes, options):
    return _for_platforms(_crop_tiles)(maps, boxes, levels, **dict(options))


def _tiles_forward(maps, boxes, levels, shapes, options):
    return _tiles(maps, boxes, levels, shapes, options), (boxes, levels)


def _tiles_backward(shapes, options, kept, dy):
    boxes, levels = kept
    return _map_tiles(dy, boxes, levels, shapes, options), jnp.zeros_like(boxes), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _map_tiles(dy, boxes, levels, shapes, options):
    return _for_platforms(_map_gradients)(dy, boxes, levels, shapes=shapes, **dict(options))


def _map_tiles_forward(dy, boxes, levels, shapes, options):
    return _map_tiles(dy, boxes, levels, shapes, options), (boxes, levels)


def _map_tiles_backward(shapes, options, kept, gradients):
    boxes, levels = kept
    return _tiles(gradients, boxes, levels, shapes, options), jnp.zeros_like(boxes), None


# Both are linear and each is the other's gradient.
_tiles.defvjp(_tiles_forward, _tiles_backward)
_map_tiles.defvjp(_map_tiles_forward, _map_tiles_backward)


def _run_tiles(maps, boxes, levels, **options):
    shapes = tuple(x.shape for x in maps)
    return _tiles(maps, boxes, levels, shapes, tuple(options.items()))


# ---- "matrices" ----


def _crop_matrices(maps, boxes, levels, *, output_size, strides, sampling_ratio):
    dtype = jnp.promote_types(maps[0].dtype, jnp.float32)

    def crop(x, box, stride):
        x1, y1, x2, y2 = box / stride - 0.5
        rows, columns = (
            bin_weights(start, end - start, jnp.arange(size), size, output_size, sampling_ratio)
            for start, end, size in ((y1, y2, x.shape[0]), (x1, x2, x.shape[1]))
        )
        lines = _einsum("oh,hwc->owc", rows.astype(dtype), x.astype(dtype))
        return _einsum("pw,owc->opc", columns.astype(dtype), lines)

    def crop_all(maps, boxes, levels):
        def one(box_and_level):
            box, level = box_and_level
            crops = [crop(x, box, stride) for x, stride in zip(maps, strides, strict=True)]
            return sum(jnp.where(level == i, y, 0) for i, y in enumerate(crops))

        return lax.map(one, (boxes, levels))

    return jax.vmap(crop_all)(maps, boxes, levels).astype(maps[0].dtype)


_OPERATION = Operation(
    "roi_align",
    {"tiles": _run_tiles, "matrices": _crop_matrices},
    auto=_run_tiles,
    plain=("matrices",),
)
