# SPDX-License-Identifier: Apache-2.0
"""Masks in COCO's forms: pycocotools' bitmaps, numbers kept to the last bit, and bad forms."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from support.miniature_coco import bitmap, rectangle, runs
from support.places import GOLDENS

from mambaout_jax.data.sets.segments import (
    POLYGONS,
    RUNS,
    MalformedSegmentError,
    SegmentsBuilder,
    decompressed,
)

RUNS_OF_RECTANGLE = runs(bitmap(6, 8, (2, 1, 5, 4)))


def packed(*forms):
    builder = SegmentsBuilder()
    for form in forms:
        builder.add(form)
    return builder.finish()


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "dense" / "coco_masks.npz") as file:
        meta = json.loads(str(file["meta"]))
        height, width = meta["image_shape"]
        bits = np.unpackbits(file["masks_bits"], axis=-1)[..., :width].astype(bool)
    return meta, bits, height, width


@pytest.mark.parametrize("form", ["polygons", "compressed"])
def test_bitmaps_are_those_of_pycocotools(golden, form):
    meta, bits, height, width = golden
    forms = meta["polygons"]
    if form == "compressed":
        forms = [{"counts": counts, "size": [height, width]} for counts in meta["rle"]]
    masks = packed(*forms)
    np.testing.assert_array_equal(masks.bitmaps(range(6), height, width), bits)
    np.testing.assert_array_equal(masks.bitmaps([4, 0], height, width), bits[[4, 0]])
    assert masks.bitmaps([], height, width).shape == (0, height, width)
    assert masks.bitmaps([2], height, width).dtype == bool


def test_runs_go_down_the_columns_and_begin_with_zeros():
    assert RUNS_OF_RECTANGLE["counts"] == [13, 3, 3, 3, 3, 3, 20]  # column 2, from row 1 on
    corner = bitmap(6, 8, (0, 0, 1, 2))
    masks = packed(RUNS_OF_RECTANGLE, runs(corner))
    expected = [bitmap(6, 8, (2, 1, 5, 4)), corner]
    np.testing.assert_array_equal(masks.bitmaps([0, 1], 6, 8), expected)
    assert runs(corner)["counts"] == [0, 2, 46]
    assert masks.kinds.tolist() == [RUNS, RUNS]


def test_polygons_of_one_object_are_united():
    form = [rectangle(1, 1, 4, 5), rectangle(2, 3, 7, 6)]
    expected = bitmap(8, 9, (1, 1, 4, 5), (2, 3, 7, 6))
    np.testing.assert_array_equal(packed(form).bitmaps([0], 8, 9), expected[None])


def test_strings_of_runs_are_decompressed(golden, rng):
    meta = golden[0]
    assert decompressed(meta["rle"][0]) == meta["uncompressed_0"]
    for share in (0.001, 0.5, 0.999):
        mask = rng.random((37, 211)) < share
        text = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert decompressed(text) == runs(mask)["counts"]


def test_numbers_come_back_to_the_last_bit(rng):
    two_decimals = [round(value, 2) for value in rng.uniform(-5, 70_000, 2000).tolist()]
    long = [1.0799999999999841, 0.1 + 0.2, 1e300, -0.005, 123.456, 7]
    many = [rectangle(0, 0, index / 100, 1) for index in range(40_000)]  # more than one block
    masks = packed([two_decimals], *([polygon] for polygon in many), [long, two_decimals[:6]])
    assert masks.segmentation(0, 9, 9) == [two_decimals]
    assert masks.segmentation(39_999, 9, 9) == [many[39_998]]
    assert masks.segmentation(40_001, 9, 9) == [long, two_decimals[:6]]
    assert not masks.exact[0]
    assert masks.exact[40_001]  # the block that holds the long ones, and no other
    assert masks.words.nbytes < 8 * (2000 + 8 * 40_000)
    large = {"counts": [30_000_000, 6_000_000], "size": [6000, 6000]}  # hundredths leave int32
    assert packed(large).segmentation(0, 6000, 6000) == large


def test_masks_are_found_in_another_order():
    forms = [[rectangle(0, 0, 3, 3)], RUNS_OF_RECTANGLE, [[0.125, 1, 2, 3, 4, 5]]]
    masks = packed(*forms).take(np.array([2, 0, 1]))
    found = [masks.segmentation(row, 6, 8) for row in range(3)]
    assert found == [forms[2], forms[0], forms[1]]


def test_parts_that_are_no_polygons_are_left_out_and_remembered():
    builder = SegmentsBuilder()
    for form in ([[1, 2, 3, 4], rectangle(0, 0, 2, 2)], [rectangle(0, 0, 1, 1)], [[1] * 7], []):
        builder.add(form)
    masks = builder.finish()
    assert builder.discarded == [0, 2]
    assert masks.part_counts().tolist() == [1, 1, 0, 0]
    assert masks.segmentation(0, 4, 5) == [rectangle(0, 0, 2, 2)]
    for row in (2, 3):  # nothing that pycocotools would stumble over
        assert masks.segmentation(row, 4, 5) == {"counts": [20], "size": [4, 5]}
    assert masks.bitmaps([0, 2], 4, 5).sum((1, 2)).tolist() == [4, 0]
    assert masks.kinds.tolist() == [POLYGONS] * 4


def sized(**changes):
    return {**RUNS_OF_RECTANGLE, **changes}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (None, "it is neither polygons nor runs"),
        ({"size": [6, 8]}, "it is neither polygons nor runs"),
        (sized(size=6), "it is neither polygons nor runs"),
        (sized(counts=5), "it is neither polygons nor runs"),
        ([1, 2, 3, 4, 5, 6], r"it is no list of polygons \[\[x, y, x, y, \.\.\.\]\]"),
        ([[1, 2, float("nan"), 4, 5, 6]], "it holds nan, which is no number"),
        ([[1, 2, float("inf"), 4, 5, 6]], "it holds inf, which is no number"),
        ([[1, 2, "3", 4, 5, 6]], "it holds '3', which is no number"),
        ([[1, 2, None, 4, 5, 6]], "it holds None, which is no number"),
        ([[1, 2, [3], 4, 5, 6]], r"it holds \[3\], which is no number"),
        (sized(counts=[13, 3]), "its runs cover 16 pixels, and 6 x 8 are 48"),
        (sized(counts=[50, -2]), "its runs or their size are no whole numbers from 0"),
        (sized(counts=[47.5, 0.5]), "its runs or their size are no whole numbers from 0"),
        (sized(size=[-6, -8]), "its runs or their size are no whole numbers from 0"),
        (sized(counts="d?=P1"), r"its runs cover [\d,]+ pixels, and 6 x 8 are 48"),
        (sized(counts="P"), "its runs end inside a number"),
        (sized(counts="é"), "its runs hold 'é', which is not of COCO's code"),
    ],
)
def test_a_form_that_is_none_is_refused_with_its_row(form, reason):
    builder = SegmentsBuilder()
    builder.add([rectangle(0, 0, 2, 2)])
    with pytest.raises(MalformedSegmentError, match=rf"^{reason}") as raised:  # noqa: PT012
        builder.add(form)
        builder.add([rectangle(0, 0, 2, 2)])
        builder.finish()
    assert raised.value.row == 1
