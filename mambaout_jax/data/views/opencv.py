# SPDX-License-Identifier: Apache-2.0
"""Decoding, resizing and warping with OpenCV: faster than Pillow, for training images only.

OpenCV decodes a JPEG to the same pixels as Pillow, but resizes by other kernels: about one grey
level away on photographs. It is optional, and here are its traps:

- it turns images by their EXIF orientation, unasked; here they stay as stored, as Pillow has them;
- what it cannot read, or only in part, it returns as None; here that raises;
- it starts threads of its own, which fight with the loader's; here they are off.
"""

import functools
from types import ModuleType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_AREA_FROM = 1.5  # old size over new: without antialiasing below, at most two grey levels are lost


@functools.cache
def _cv2() -> ModuleType:
    try:
        import cv2  # optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data.decoder='opencv' needs OpenCV: pip install 'mambaout_jax[data]', or set "
            "--config.data.decoder=pillow"
        ) from error
    cv2.setNumThreads(0)
    return cv2


def check_installed() -> None:
    """Raises ModuleNotFoundError, with what to install, where OpenCV is missing."""
    _cv2()


def decode(content: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Decodes an image file of 8 bits per channel without transparency, such as a JPEG.

    Args:
        content: bytes of the file.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: OpenCV cannot decode it, or it is cut short.
    """
    cv2 = _cv2()
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    buffer = np.frombuffer(content, np.uint8)
    pixels = cv2.imdecode(buffer, mode | cv2.IMREAD_IGNORE_ORIENTATION) if content else None
    if pixels is None:
        raise ValueError(
            f"OpenCV cannot decode these {len(content)} bytes: the file is cut short, or no image"
        )
    return pixels.reshape(*pixels.shape[:2], channels)


def crop_and_resize(
    pixels: UInt8[np.ndarray, "H W C"],
    box: tuple[int, int, int, int],
    size: int,
    interpolation: str,
) -> UInt8[np.ndarray, "size size C"]:
    """Resizes a box of the image to size x size.

    Where both sides shrink to two thirds or less each new pixel is the mean of the area it covers.
    That is slow, so that where they shrink by less it is interpolated linearly, and where a side
    grows as asked, without antialiasing.

    Args:
        pixels: image of 1 or 3 channels.
        box: left, top, right, bottom in pixels, inside the image.
        size: side of the result in pixels.
        interpolation: "bilinear" or "bicubic", of what grows.
    """
    cv2 = _cv2()
    left, top, right, bottom = box
    shrinks = min(right - left, bottom - top) / size
    if shrinks >= _AREA_FROM:
        kernel = cv2.INTER_AREA
    elif shrinks >= 1 or interpolation == "bilinear":
        kernel = cv2.INTER_LINEAR
    else:
        kernel = cv2.INTER_CUBIC
    resized = cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=kernel)
    return resized.reshape(size, size, pixels.shape[2])  # OpenCV drops a single channel


def warp(
    image: Image.Image,
    coefficients: tuple[float, float, float, float, float, float],
    interpolation: str,
    fill: int | tuple[int, ...],
) -> Image.Image:
    """`rand_augment.warp`, in well under half its time.

    At its border the image fades into the fill within a pixel, where Pillow has an edge.
    """
    cv2 = _cv2()
    a, b, c, d, e, f = coefficients
    # Of positions where a pixel's centre is a whole number.
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    kernel = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    pixels = cv2.warpAffine(
        np.asarray(image),
        matrix,
        image.size,
        flags=kernel | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    return Image.fromarray(pixels)
