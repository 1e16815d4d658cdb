# SPDX-License-Identifier: Apache-2.0
"""Random brightness, contrast, saturation and hue of uint8 images, as mmseg draws them.

Every operation computes in float32, clips and truncates to uint8. Saturation and hue go through
the HSV of 8 bits that OpenCV has (hue 0...179): there and back are its numbers, rounding included
(OpenCV 4 and 5 on x86), computed here with tables, without OpenCV.
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

BRIGHTNESS = 32.0  # largest change, in grey levels
FACTOR = (0.5, 1.5)  # of contrast and of saturation
HUE = 18  # half degrees: -18 to 17 are added, as in mmseg

_BLOCK = 8192  # pixels that are computed together

_Image = UInt8[np.ndarray, "H W 3"]


def distort(image: _Image, rng: np.random.Generator) -> _Image:
    """mmseg's PhotoMetricDistortion: each operation with probability 0.5.

    Brightness; contrast, by a coin either here or at the end; saturation; hue.

    Args:
        image: RGB.
        rng: the source of randomness.
    """
    if rng.random() < 0.5:
        image = convert(image, offset=rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(*FACTOR) if rng.random() < 0.5 else None
    if contrast is not None and contrast_first:
        image = convert(image, factor=contrast)
    if rng.random() < 0.5:
        image = saturate(image, rng.uniform(*FACTOR))
    if rng.random() < 0.5:
        image = shift_hue(image, int(rng.integers(-HUE, HUE)))
    if contrast is not None and not contrast_first:
        image = convert(image, factor=contrast)
    return image


def convert(
    values: UInt8[np.ndarray, "..."], factor: float = 1.0, offset: float = 0.0
) -> UInt8[np.ndarray, "..."]:
    """factor * value + offset, clipped to 0...255 and truncated."""
    table = np.arange(256, dtype=np.float32) * factor + offset
    return np.clip(table, 0, 255).astype(np.uint8)[values]


def saturate(image: _Image, factor: float) -> _Image:
    """Multiplies the saturation, truncated to 8 bits, of an RGB image."""
    result = np.empty_like(image)
    scaled = convert(np.arange(256, dtype=np.uint8), factor).astype(np.int32)
    for rows in _blocks(image):
        hue, saturation, value = _to_hsv(image[rows])
        result[rows] = _to_rgb(hue, _look_up(scaled, saturation), value)
    return result


def shift_hue(image: _Image, half_degrees: int) -> _Image:
    """Adds to the hue of an RGB image, in units of 2 degrees."""
    result = np.empty_like(image)
    turned = (np.arange(180, dtype=np.int32) + half_degrees) % 180
    for rows in _blocks(image):
        hue, saturation, value = _to_hsv(image[rows])
        result[rows] = _to_rgb(_look_up(turned, hue), saturation, value)
    return result


def _blocks(image: _Image) -> Iterator[slice]:
    """Rows whose intermediate results stay in the cache together."""
    height = max(1, _BLOCK // image.shape[1])
    return (slice(top, top + height) for top in range(0, len(image), height))


def _to_hsv(image: _Image) -> tuple[Int[np.ndarray, "H W"], ...]:
    """Hue in half degrees, 0...179, saturation and value, 0...255: fixed point of 12 bits."""
    per_value, per_range = _hsv_tables()
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _look_up(per_value, value) + 2**11) >> 12
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (hue * _look_up(per_range, spread) + 2**11) >> 12
    hue += 180 * (hue < 0)
    return hue, saturation, value


def _to_rgb(
    hue: Int[np.ndarray, "H W"], saturation: Int[np.ndarray, "H W"], value: Int[np.ndarray, "H W"]
) -> _Image:
    result = np.empty((*hue.shape, 3), np.uint8)
    place = (hue * 256 + saturation).astype(np.intp)
    value = value.astype(np.float32) * np.float32(1 / 255)
    for channel, shares in enumerate(_rgb_shares()):
        # Truncated, as OpenCV's vector code does. By way of int32, which has an instruction.
        result[..., channel] = (shares.take(place) * value * 255).astype(np.int32)
    return result


def _look_up(table: Int[np.ndarray, "n"], index: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    return table.take(index.astype(np.intp))  # with other integers `take` is slow


@functools.cache
def _hsv_tables() -> tuple[Int[np.ndarray, "256"], Int[np.ndarray, "256"]]:
    """255 / i and 30 / i with 12 bits after the point; 0 for i = 0."""
    i = np.arange(1, 256)
    tables = (np.rint((255 << 12) / i), np.rint((180 << 12) / (6.0 * i)))
    of_value, of_range = (np.append(0, table).astype(np.int32) for table in tables)
    return of_value, of_range


@functools.cache
def _rgb_shares() -> Float[np.ndarray, "3 pairs"]:
    """Red, green and blue as shares of the value, at hue * 256 + saturation.

    Within a sixth of the circle one channel is 1, one is 1 - s, and the third goes linearly from
    one to the other: 1 - s * fraction down, 1 - s * (1 - fraction) up. OpenCV rounds these to
    float32 once (a fused multiply-add).
    """
    saturation = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    hue = np.arange(180, dtype=np.float32)[:, None] * np.float32(6 / 180)
    sector = np.floor(hue)
    fraction = hue - sector
    s = saturation.astype(np.float64)
    down = (1 - s * fraction).astype(np.float32)
    up = (1 - s * (1 - fraction)).astype(np.float32)
    full, low = np.ones_like(down), np.broadcast_to(1 - saturation, down.shape)
    cycle = [full, down, low, low, up, full]  # red, by sector; green is two behind, blue four
    channels = [
        np.choose(sector.astype(int) % 6, [cycle[(k - behind) % 6] for k in range(6)])
        for behind in (0, 2, 4)
    ]
    return np.stack(channels).reshape(3, -1)
