# SPDX-License-Identifier: Apache-2.0
"""RoIAlign against torchvision's and mmdet's results, and against a float64 loop over samples."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from goldens.fill import input_of
from support.places import GOLDENS

from mambaout_jax.kernels import roi_align as module
from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.kernels.roi_align import mmdet_levels, roi_align

STRIDES = (4, 8, 16, 32)
FORMS = ("tiles", "matrices", "images apart")  # the last: "tiles" as on accelerators


def form(name, monkeypatch):
    if name == "images apart":
        monkeypatch.setattr(
            module, "_for_platforms", lambda function: functools.partial(function, stacked=False)
        )
        name = "tiles"
    return functools.partial(roi_align, implementation=name)


@pytest.fixture(scope="module")
def golden():
    """Arrays, maps, and functions from the golden's rows to (B, R, …) and back."""
    with np.load(GOLDENS / "dense" / "roi_align.npz") as file:
        arrays = dict(file)
    maps = [
        input_of((2, 3, 192 // s, 256 // s), i).transpose(0, 2, 3, 1) for i, s in enumerate(STRIDES)
    ]
    image = arrays["rois"][:, 0].astype(int)
    row = np.array([np.sum(image[:i] == image[i]) for i in range(len(image))])

    def by_image(values, filler):
        grouped = np.full((2, row.max() + 1, *values.shape[1:]), filler, values.dtype)
        grouped[image, row] = values
        return grouped

    return arrays, maps, by_image, lambda crops: np.asarray(crops)[image, row]


NAMES = (
    *(f"{name}_aligned1_sr{ratio}" for name in ("p2_out7", "p3_out14") for ratio in (0, 2)),
    "multilevel_out7",
    "multilevel_out14",
)
QUICK = {
    ("p2_out7_aligned1_sr2", "tiles"),
    ("multilevel_out7", "tiles"),
}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(NAMES, FORMS)
]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_roi_align_is_torchvisions_and_mmdets(golden, monkeypatch, name, implementation):
    arrays, maps, by_image, rows = golden
    align = form(implementation, monkeypatch)
    boxes = by_image(arrays["rois"][:, 1:], 0)
    levels = by_image(arrays["levels"], -1)
    options = {"strides": STRIDES, "output_size": 14 if "out14" in name else 7}
    if not name.startswith("multilevel"):
        which = int(name[1]) - 2
        maps, options["strides"] = maps[which : which + 1], STRIDES[which : which + 1]
        levels = np.minimum(levels, 0)
        options["sampling_ratio"] = int(name[-1])
    maps = tuple(map(jnp.asarray, maps))

    def crop(maps):
        return align(maps, jnp.asarray(boxes), jnp.asarray(levels), **options)

    weights = by_image(input_of((22, 3, 7, 7), 9), 0).transpose(0, 1, 3, 4, 2)
    if f"{name}_grad" not in arrays:
        crops = jax.jit(crop)(maps)
    else:
        run = jax.jit(lambda maps, dy: (lambda y, vjp: (y, vjp(dy)))(*jax.vjp(crop, maps)))
        crops, ((gradient,),) = run(maps, jnp.asarray(weights))
        expected = arrays[f"{name}_grad"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-5)
    expected = arrays[name].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(rows(crops), expected, rtol=1e-4, atol=5e-5)
    np.testing.assert_array_equal(crops[1, 11:], 0)  # their level is -1


def test_mmdet_levels_switch_where_mmdets_do(golden):
    arrays = golden[0]
    for prefix in ("", "level_boundary_"):
        levels = jax.jit(mmdet_levels, static_argnums=1)(arrays[prefix + "rois"][:, 1:], 4)
        np.testing.assert_array_equal(levels, arrays[prefix + "levels"])
    boxes = jnp.array([[0, 0, 5000, 5000], [0, 0, -5, 5], [3, 3, 3, 3]], jnp.float32)
    np.testing.assert_array_equal(mmdet_levels(boxes, 6), [5, 0, 0])


def by_samples(x, box, stride, size, sampling_ratio):
    """One crop, sample by sample as torchvision's CPU kernel goes, in float64."""
    H, W, C = x.shape
    x1, y1, x2, y2 = np.asarray(box, np.float64) / stride - 0.5
    lengths = (y2 - y1) / size, (x2 - x1) / size
    counts = [sampling_ratio or max(0, math.ceil(length)) for length in lengths]
    crop = np.zeros((size, size, C))
    for i, j in np.ndindex(size, size):
        for k, m in np.ndindex(*counts):
            y = y1 + (i + (k + 0.5) / counts[0]) * lengths[0]
            z = x1 + (j + (m + 0.5) / counts[1]) * lengths[1]
            if not (-1 <= y <= H and -1 <= z <= W):
                continue
            y, z = min(max(y, 0), H - 1), min(max(z, 0), W - 1)
            top, left = min(int(y), max(H - 2, 0)), min(int(z), max(W - 2, 0))
            for row, column in np.ndindex(min(2, H), min(2, W)):
                weight = (1 - abs(y - top - row)) * (1 - abs(z - left - column))
                crop[i, j] += weight * x[top + row, left + column]
    return crop / max(counts[0] * counts[1], 1)


BOXES = np.array(
    [
        [0, 0, 84, 42],  # bins of 3 x 1.5 pixels of stride 4: as many samples, and no more
        [20, 4, 20 + 28 * 7, 4 + 28],  # 7 pixels a bin across, 1 down
        [3.3, 1.1, 3.9, 120],  # narrow and high, over several tiles
        [-900, 30, 1900, 47],  # far outside on both sides
        [50, 50, 50, 90],  # no area
        [60, 60, 30, 20],  # turned
        [-4, -4, 2, 2],
        [150, 100, 176, 124],
    ],
    np.float64,
)


@pytest.mark.parametrize("implementation", FORMS)
def test_roi_align_is_a_mean_of_samples_in_float64(rng, monkeypatch, implementation):
    align = form(implementation, monkeypatch)
    maps = [rng.standard_normal((1, 124 // s, 176 // s, 2)) for s in (4, 62)]
    levels = np.array([[0, 0, 0, 0, 0, 0, 0, 1]])
    dy = rng.standard_normal((1, 8, 7, 7, 2))
    with jax.enable_x64(True):
        run = functools.partial(
            align, boxes=jnp.asarray(BOXES[None]), levels=jnp.asarray(levels), output_size=7,
            strides=(4, 62),
        )  # fmt: skip
        jitted = jax.jit(lambda maps, dy: (lambda y, vjp: (y, vjp(dy)))(*jax.vjp(run, maps)))
        crops, (gradients,) = jitted(tuple(map(jnp.asarray, maps)), jnp.asarray(dy))
        crops, gradients = jax.tree.map(np.asarray, (crops, gradients))
    expected = np.stack(
        [
            by_samples(maps[level][0], box, (4, 62)[level], 7, 0)
            for box, level in zip(BOXES, levels[0], strict=True)
        ]
    )
    assert crops.dtype == np.float64
    np.testing.assert_allclose(crops[0], expected, rtol=1e-11, atol=1e-11)
    # The crop is linear in the maps: ⟨crop(x), dy⟩ = ⟨x, gradient⟩ for every x.
    other = [rng.standard_normal(x.shape) for x in maps]
    slope = sum(
        np.vdot(by_samples(other[level][0], box, (4, 62)[level], 7, 0), weight)
        for box, level, weight in zip(BOXES, levels[0], dy[0], strict=True)
    )
    inner = sum(np.vdot(x, g) for x, g in zip(other, gradients, strict=True))
    np.testing.assert_allclose(inner, slope, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.optimised
def test_roi_align_takes_as_many_samples_as_torch_at_multiples_of_bins(rng):
    """Sides of exactly n pixels a bin, where ceil jumps, for n up to 9 and several bin counts."""
    x = rng.standard_normal((1, 16, 160, 1)).astype(np.float32)
    for size in (5, 7, 14):
        sides = size * np.arange(1, 10)
        boxes = np.stack([np.full(9, 3), np.full(9, 2), 3 + sides, np.full(9, 12)], -1)
        crops = jax.jit(lambda x, b, size=size: roi_align((x,), b, None, size, strides=(1,)))(
            x, boxes[None].astype(np.float32)
        )
        expected = [by_samples(x[0], box, 1, size, 0) for box in boxes]
        np.testing.assert_allclose(crops[0], expected, rtol=1e-4, atol=1e-5)


def small(rng, dtype=jnp.float32):
    maps = tuple(jnp.asarray(rng.standard_normal((2, n, n + 2, 3)), dtype) for n in (20, 10))
    corners = rng.uniform(0, 60, (2, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (2, 3, 2))], -1)
    return maps, jnp.asarray(boxes, jnp.float32), jnp.asarray([[0, 1, 0], [1, 0, 1]])


def test_roi_align_of_bfloat16_adds_up_in_float32(rng):
    x = jnp.asarray(rng.standard_normal((1, 20, 40, 3)), jnp.bfloat16)
    boxes = jnp.array([[[3, 5, 30, 90], [0, 0, 160, 80]]], jnp.float32)
    dy = jnp.asarray(rng.standard_normal((1, 2, 3, 3, 3)), jnp.bfloat16)

    @jax.jit
    def run(x, dy):
        crop = functools.partial(roi_align, boxes=boxes, levels=None, output_size=3, strides=(4,))
        y, vjp = jax.vjp(crop, (x,))
        return y, *vjp(dy)[0]

    crops, gradient = run(x, dy)
    exact = run(x.astype(jnp.float32), dy.astype(jnp.float32))
    assert crops.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(crops, exact[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(gradient, exact[1].astype(jnp.bfloat16))


@pytest.mark.slow
def test_roi_align_is_linear_in_its_maps_and_batched_by_vmap(rng):
    maps, boxes, levels = small(rng)

    def crop(maps, boxes=boxes, levels=levels):
        return roi_align(maps, boxes, levels, 3, strides=(4, 8))

    def slope(maps, direction):
        return jax.vjp(crop, maps)[1](crop(direction))[0]

    crops = crop(maps)
    with plain_implementations():
        tangent = jax.jvp(crop, (maps,), (maps,))[1]
    np.testing.assert_allclose(tangent, crops, rtol=1e-5, atol=1e-5)
    # ⟨Ax, Ax⟩ differentiated twice is 2 AᵀA.
    hessian = jax.grad(lambda x: jnp.vdot(jax.grad(lambda z: jnp.sum(crop(z) ** 2))(x)[0], maps[0]))
    for found, expected in zip(
        hessian(maps), slope((maps[0], maps[1] * 0), (maps[0], maps[1] * 0)), strict=True
    ):
        np.testing.assert_allclose(found, 2 * expected, rtol=1e-4, atol=1e-4)
    stacked = jax.tree.map(lambda x: jnp.stack([x, -x]), maps)
    both = jax.vmap(crop)(stacked, jnp.stack([boxes, boxes]), jnp.stack([levels, levels]))
    np.testing.assert_allclose(both, jnp.stack([crops, -crops]), rtol=1e-6, atol=1e-6)


def test_roi_align_says_where_boxes_are_no_numbers(rng):
    x = jnp.ones((2, 5, 6, 3))
    boxes = jnp.array([[[0, 0, 9, 9], [1, 1, 5, 5]]] * 2, jnp.float32)
    boxes = boxes.at[0, 0, 2].set(jnp.nan).at[1, 1, 0].set(-jnp.inf)

    @jax.jit
    def run(boxes):
        crop = functools.partial(roi_align, (x,), levels=None, output_size=2, strides=(4,))
        crops, vjp = jax.vjp(crop, boxes)
        return crops, *vjp(jnp.ones_like(crops))

    crops, gradient = run(boxes)
    bad = np.isnan(crops).all((-1, -2, -3))
    np.testing.assert_array_equal(bad, [[True, False], [False, True]])
    np.testing.assert_allclose(crops[~bad], 1, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_roi_align_and_its_gradient_need_little_memory():
    """512 boxes on 800 x 1344 pixels; crops alone are 26 MB, the finest map 69 MB."""
    shapes = [jax.ShapeDtypeStruct((1, 800 // s, 1344 // s, 256), jnp.float32) for s in STRIDES]
    boxes = jax.ShapeDtypeStruct((1, 512, 4), jnp.float32)
    dy = jax.ShapeDtypeStruct((1, 512, 7, 7, 256), jnp.float32)

    def both(maps, boxes, dy):
        crop = functools.partial(roi_align, boxes=boxes, levels=None, output_size=7)
        y, vjp = jax.vjp(functools.partial(crop, strides=STRIDES), maps)
        return y, vjp(dy)

    compiled = jax.jit(both).lower(tuple(shapes), boxes, dy).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 60e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": ()}, r"0 maps need as many strides, 1 or more, not \(4, 8\)"),
        ({"strides": (4,)}, r"2 maps need as many strides, 1 or more, not \(4,\)"),
        ({"maps": ((2, 8, 8, 3), (2, 4, 4, 2))}, "same B, C and dtype"),
        ({"maps": ((8, 8, 3), (4, 4, 3))}, r"maps must be \(B, H, W, C\)"),
        ({"boxes": (5, 4)}, r"boxes must be \(B, R, 4\)"),
        ({"boxes": (3, 5, 4)}, "with the B of the maps"),
        ({"levels": (2, 4)}, r"levels int32\(2, 4\) must be integers \(B, R\), or None"),
        ({"output_size": 0}, "output_size=0; use a whole number of 1 or more"),
        ({"output_size": 7.0}, "output_size=7.0; use a whole number"),
        ({"sampling_ratio": -1}, "sampling_ratio=-1; use a whole number of 0 or more"),
        ({"strides": (4, 0)}, "strides=0; use a whole number of 1 or more"),
        ({"implementation": "cuda"}, "allowed are 'auto', 'tiles', 'matrices'"),
    ],
)
def test_roi_align_rejects(monkeypatch, changes, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = {"maps": ((2, 8, 8, 3), (2, 4, 4, 3)), "boxes": (2, 5, 4), "levels": (2, 5)}
    given |= {"output_size": 7, "strides": (4, 8)} | changes
    given["maps"] = tuple(map(jnp.ones, given["maps"]))
    given["boxes"] = jnp.ones(given["boxes"])
    given["levels"] = jnp.ones(given["levels"], jnp.int32)
    with pytest.raises(ValueError, match=message):
        roi_align(**given)


def test_roi_align_rejects_integer_maps(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = jnp.ones((1, 4, 4, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"int32\(1, 4, 4, 1\).*must be floating"):
        roi_align((x,), jnp.ones((1, 1, 4)), None, 2, strides=(4,))
