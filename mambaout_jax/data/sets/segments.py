# SPDX-License-Identifier: Apache-2.0
"""Masks of objects in COCO's forms, many of them in a few arrays, and drawn as bitmaps on demand.

A mask is a list of polygons, the parts of one object, each flat x y x y … in pixels; or runs (RLE),
`{"counts": [...], "size": [height, width]}`, whose lengths go down the columns and begin with a run
of zeros; or such runs compressed into a string.

COCO's 860,001 training masks have some forty million coordinates. Nearly all are written with two
decimals: as int32 hundredths they take 4 bytes each, and come back as the very same numbers. A
block of masks that has others is kept as float64.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8
from pycocotools import mask as rle

POLYGONS, RUNS = range(2)
SHORTEST = 6  # numbers of a polygon: three points

_BLOCK = 2**18  # numbers that are packed together
_LARGEST = 2**31 - 1


class MalformedSegmentError(ValueError):
    """A mask that has none of COCO's forms.

    Attributes:
        row: its number among those that were added.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


@dataclasses.dataclass(frozen=True)
class Segments:
    """Masks by number. The arrays may be memory-mapped files.

    Attributes:
        kinds: POLYGONS or RUNS.
        exact: whether the numbers are float64, in two words each; else hundredths, in one.
        words: all numbers, part after part.
        starts: where the words of each mask begin.
        parts: which rows of `lengths` are of each mask, from and to.
        lengths: how many numbers each part has: a polygon, or all of a mask's runs.
    """

    kinds: UInt8[np.ndarray, "A"]
    exact: Bool[np.ndarray, "A"]
    words: Int32[np.ndarray, "words"]
    starts: Int[np.ndarray, "A"]
    parts: Int[np.ndarray, "A 2"]
    lengths: Int32[np.ndarray, "parts"]

    def take(self, rows: Int[np.ndarray, "A"]) -> "Segments":
        """These masks in this order; the numbers themselves stay where they are."""
        columns = {name: getattr(self, name)[rows] for name in _BY_MASK}
        return dataclasses.replace(self, **columns)

    def part_counts(self) -> Int[np.ndarray, "A"]:
        """How many parts each mask has. None: nothing was drawable in it."""
        return self.parts[:, 1] - self.parts[:, 0]

    def segmentation(self, row: int, height: int, width: int) -> list | dict[str, Any]:
        """The mask in COCO's form. One without any part is all zeros, as runs."""
        values = self._values(row)
        if self.kinds[row] == POLYGONS:
            polygons = [part.tolist() for part in values]
            return polygons or {"counts": [height * width], "size": [height, width]}
        return {"counts": values[0].astype(np.int64).tolist(), "size": [height, width]}

    def bitmaps(
        self, rows: Sequence[int] | Int[np.ndarray, "n"], height: int, width: int
    ) -> Bool[np.ndarray, "n H W"]:
        """Draws masks as pycocotools does."""
        masks = np.zeros((len(rows), height, width), bool)
        for mask, row in zip(masks, rows, strict=True):
            counts = self._counts(int(row), height, width)
            values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
            last = len(values) - (counts[-1] if len(counts) % 2 else 0)
            covered = slice(counts[0] // height, -(-last // height))  # columns; others are zero
            mask[:, covered] = values.reshape(width, height)[covered].T
        return masks

    def _counts(self, row: int, height: int, width: int) -> list[int]:
        """The lengths of the runs, of all parts together."""
        form = self.segmentation(row, height, width)
        if isinstance(form, dict):
            return form["counts"]
        runs: Any = rle.merge(rle.frPyObjects(form, height, width))
        return decompressed(runs["counts"].decode())

    def _values(self, row: int) -> list[np.ndarray]:
        """The numbers of each part, float64."""
        lengths = self.lengths[slice(*self.parts[row])]
        count, start = int(lengths.sum()), int(self.starts[row])
        if self.exact[row]:
            values = np.array(self.words[start : start + 2 * count]).view(np.float64)
        else:
            values = self.words[start : start + count] / 100
        return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


_BY_MASK = ("kinds", "exact", "starts", "parts")


class SegmentsBuilder:
    """Packs masks one after the other.

    Attributes:
        discarded: rows of masks that lost parts: polygons of fewer than three points, or of an odd
            length, which pycocotools would take for boxes or refuse.
        sizes: height and width that each mask's runs are for; (0, 0) for polygons.
    """

    def __init__(self):
        self.discarded: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self._kinds, self._part_counts, self._lengths = bytearray(), [], []
        self._pending, self._pending_counts = [], []
        self._words, self._exact, self._starts = bytearray(), [], []

    def add(self, form: Any) -> None:
        """Packs the next mask.

        Raises:
            MalformedSegmentError: it has none of COCO's forms.
        """
        row = len(self._kinds)
        if isinstance(form, list):
            kind, size = POLYGONS, (0, 0)
            if not all(isinstance(part, list) for part in form):
                raise MalformedSegmentError(row, "it is no list of polygons [[x, y, x, y, ...]]")
            parts = [part for part in form if len(part) >= SHORTEST and len(part) % 2 == 0]
            if len(parts) < len(form):
                self.discarded.append(row)
        else:
            counts, size = _runs_of(form, row)
            kind, parts = RUNS, [counts]
        self._kinds.append(kind)
        self.sizes.append(size)
        self._part_counts.append(len(parts))
        count = 0
        for part in parts:
            self._lengths.append(len(part))
            self._pending += part
            count += len(part)
        self._pending_counts.append(count)
        if len(self._pending) >= _BLOCK:
            self._pack()

    def finish(self) -> Segments:
        """All masks that were added.

        Raises:
            MalformedSegmentError: as `add`.
        """
        self._pack()
        ends = np.cumsum(np.array(self._part_counts, np.int64))
        return Segments(
            kinds=np.frombuffer(bytes(self._kinds), np.uint8),
            exact=np.concatenate([*self._exact, np.zeros(0, bool)]),
            words=np.frombuffer(self._words, np.int32),
            starts=np.concatenate([*self._starts, np.zeros(0, np.int64)]),
            parts=np.stack([ends - self._part_counts, ends], 1).astype(np.int64),
            lengths=np.array(self._lengths, np.int32),
        )

    def _pack(self) -> None:
        values = self._checked()
        hundredths = np.rint(values * 100)
        small = bool((np.abs(hundredths) <= _LARGEST).all())
        # As the division is exact to the last bit, it gives the number nearest to the two decimals.
        exact = not (small and (hundredths.astype(np.int32) / 100 == values).all())
        words = values.view(np.int32) if exact else hundredths.astype(np.int32)
        counts = np.array(self._pending_counts, np.int64) * (2 if exact else 1)
        self._starts.append(len(self._words) // 4 + np.cumsum(counts) - counts)
        self._exact.append(np.full(len(counts), exact))
        self._words += words.tobytes()
        self._pending, self._pending_counts = [], []

    def _checked(self) -> np.ndarray:
        """The pending numbers as float64."""
        try:
            values = np.array(self._pending)
            if not values.size or (values.dtype.kind in "iuf" and np.isfinite(values).all()):
                return values.astype(np.float64)
        except ValueError:  # lists among the numbers
            pass
        row, end = len(self._kinds) - len(self._pending_counts), 0
        for count in self._pending_counts:
            for value in self._pending[end : end + count]:
                if type(value) not in (int, float) or not np.isfinite(value):
                    raise MalformedSegmentError(row, f"it holds {value!r}, which is no number")
            row, end = row + 1, end + count
        raise AssertionError("one of the numbers is none")


def _runs_of(form: Any, row: int) -> tuple[list[int], tuple[int, int]]:
    """Lengths of the runs, and height and width of the image they are for."""
    try:
        (height, width), counts = form["size"], form["counts"]
        if isinstance(counts, str):
            counts = decompressed(counts)
        if any(type(count) is not int or count < 0 for count in [height, width, *counts]):
            raise ValueError("its runs or their size are no whole numbers from 0")
        if sum(counts) != height * width:
            raise ValueError(
                f"its runs cover {sum(counts):,} pixels, and {height} x {width} are "
                f"{height * width:,}"
            )
    except (KeyError, TypeError):
        reason = 'it is neither polygons nor runs {"counts": ..., "size": [height, width]}'
        raise MalformedSegmentError(row, reason) from None
    except ValueError as error:
        raise MalformedSegmentError(row, str(error)) from None
    return counts, (height, width)


def decompressed(text: str) -> list[int]:
    """The lengths of runs that pycocotools has compressed into a string.

    Five bits a character, lowest first, of which the sixth says that more follow and the fifth of
    the last one is the sign. From the fourth run on it is the difference to the run two before.

    Raises:
        ValueError: `text` ends inside a number, or has characters that are not of this code.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its runs hold {character!r}, which is not of COCO's code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("its runs end inside a number")
    return counts
