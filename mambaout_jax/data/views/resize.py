# SPDX-License-Identifier: Apache-2.0
"""Images and label maps resized as mmdet and mmseg have them: OpenCV's numbers, in numpy alone.

Published detection and segmentation results were trained and tested on images that
`cv2.resize(..., INTER_LINEAR)` made, without antialiasing, and on labels of `INTER_NEAREST`. Both
are computed here bit for bit as OpenCV 4 and 5 do on x86, so that the pixels of a run depend
neither on whether OpenCV is installed nor on its version.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

_BITS = 11  # of the fraction of a weight, as OpenCV's INTER_RESIZE_COEF_BITS
_BLOCK = 32  # new rows that are computed together


def resize_image(
    image: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> UInt8[np.ndarray, "h w C"]:
    """Interpolates bilinearly between pixel centres, without antialiasing.

    The numbers are those of `cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)`: new pixel
    i lies at (i + 0.5) * old / new - 0.5 of the old ones, clamped to the image; weights have 11
    bits, rows are blended first, and what is blended of them is cut to 15 bits.

    Args:
        image: pixels of any number of channels.
        size: height and width of the whole result.
        window: top, left, bottom, right in the result: only this part is computed, and returned.
            It is what slicing the whole result gives.

    Raises:
        ValueError: a side of the image or of `size` is not positive, or the window is not inside.
    """
    top, left, bottom, right = _window(image.shape[:2], size, window)
    if size == image.shape[:2]:
        return image[top:bottom, left:right].copy()
    x = _taps(image.shape[1], size[1], left, right, clamped=True)
    y = _taps(image.shape[0], size[0], top, bottom, clamped=False)
    channels = image.shape[2]
    x_low, x_high = (_spread(index, channels) for index in (x.low, x.high))
    x_low_weight, x_high_weight = (
        np.repeat(weight, channels) for weight in (x.low_weight, x.high_weight)
    )
    flat = image.reshape(len(image), -1)  # (H, W*C)
    pixels = np.empty((bottom - top, len(x_low)), np.uint8)
    for start in range(0, len(pixels), _BLOCK):  # what is between stays in the cache
        block = slice(start, start + _BLOCK)
        low, high = y.low[block], y.high[block]
        needed = flat[low[0] : high[-1] + 1]
        rows = needed.take(x_low, 1) * x_low_weight
        rows += needed.take(x_high, 1) * x_high_weight
        rows >>= _BITS - 7  # to 15 bits
        blended = rows[low - low[0]] * y.low_weight[block, None] >> 16
        blended += rows[high - low[0]] * y.high_weight[block, None] >> 16
        blended += 2
        pixels[block] = blended >> 2
    return pixels.reshape(bottom - top, right - left, channels)


def resize_labels(
    labels: Shaped[np.ndarray, "*N H W"],
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> Shaped[np.ndarray, "*N h w"]:
    """Takes for each new pixel i the old pixel floor(i * old / new): label maps, masks.

    The numbers are those of `cv2.resize(labels, (w, h), interpolation=cv2.INTER_NEAREST)`, whose
    product is rounded in float64 before the floor.

    Args:
        labels: one map or several, of any dtype.
        size: height and width of the whole result.
        window: top, left, bottom, right in the result: only this part is returned.

    Raises:
        ValueError: a side of the map or of `size` is not positive, or the window is not inside.
    """
    height, width = labels.shape[-2:]
    top, left, bottom, right = _window((height, width), size, window)
    rows = _nearest(height, size[0], top, bottom)
    columns = _nearest(width, size[1], left, right)
    return labels.take(rows, -2).take(columns, -1)


def scaled_size(size: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
    """The largest size of an image's proportions whose sides stay within two bounds.

    `mmcv.rescale_size`: the factor is min(long bound / long side, short bound / short side), and
    each side becomes int(side * factor + 0.5), though at least 1.

    Args:
        size: height and width of the image.
        bounds: of its two sides, in either order.
    """
    factor = min(max(bounds) / max(size), min(bounds) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


class _Taps(NamedTuple):
    """The two old pixels that each new one lies between, and their weights of 11 bits."""

    low: Int[np.ndarray, "n"]
    high: Int[np.ndarray, "n"]
    low_weight: Int[np.ndarray, "n"]
    high_weight: Int[np.ndarray, "n"]


def _taps(old: int, new: int, start: int, stop: int, clamped: bool) -> _Taps:
    """Of new pixels start to stop. Beyond the border both taps are the outermost pixel; `clamped`
    gives all weight to the lower one, as OpenCV does across, and not down.
    """
    # OpenCV rounds the position to float32, and divides in this order.
    scale = 1 / (new / old)
    position = ((np.arange(start, stop) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position).astype(np.intp)
    fraction = position - low.astype(np.float32)
    if clamped:
        fraction[(low < 0) | (low >= old - 1)] = 0
    high_weight = np.rint(fraction * 2**_BITS).astype(np.int32)
    low_weight = np.rint((1 - fraction) * 2**_BITS).astype(np.int32)
    return _Taps(low.clip(0, old - 1), (low + 1).clip(0, old - 1), low_weight, high_weight)


def _nearest(old: int, new: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
    scale = 1 / (new / old)
    return np.minimum(np.floor(np.arange(start, stop) * scale).astype(np.intp), old - 1)


def _spread(index: Int[np.ndarray, "n"], channels: int) -> Int[np.ndarray, "m"]:
    return (index[:, None] * channels + np.arange(channels)).reshape(-1)  # (n*C,)


def _window(
    old: tuple[int, ...], size: tuple[int, int], window: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int]:
    if min(*old, *size) < 1:
        raise ValueError(
            f"an image of {tuple(old)} cannot be resized to {size}: sides are positive"
        )
    if window is None:
        return 0, 0, *size
    top, left, bottom, right = window
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise ValueError(f"window={window} (top, left, bottom, right) is not inside {size}")
    return window
