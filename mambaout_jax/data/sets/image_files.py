# SPDX-License-Identifier: Apache-2.0
"""Image files, decoded."""

import io
import math
import re
import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mambaout_jax.data.views import opencv
from mambaout_jax.settings import MAX_PIXELS

Decoded = Image.Image | UInt8[np.ndarray, "H W C"]

# EXIF orientation → the operation that turns the image upright; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names the file and the reason."""


def pixels_of(image: Decoded) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an image, with an axis of channels also where it is grey."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W, C)


def read_image(
    path: str | Path, channels: int, decoder: str = "pillow", max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Reads and decodes one image file.

    - The image is turned upright by its EXIF orientation. The evaluation pipelines of published
      weights ignore EXIF, but hardly any file of ImageNet has an orientation, and photographs from
      phones need it. A broken EXIF block counts as upright.
    - Transparent pixels are laid over white. CMYK is converted by Pillow's formula, without colour
      profiles. 16-bit greyscale is scaled to 8 bits, not clipped. The first frame of an animation
      counts.

    Args:
        path: the file; its content decides the format, not its suffix.
        channels: 1 for mode "L" (ITU-R 601 luma), 3 for mode "RGB".
        decoder: "pillow" or "opencv". With "opencv", ordinary JPEG files (upright, grey or RGB) are
            decoded by OpenCV and returned as pixels, uint8 (H, W, C). That is faster and gives the
            same pixels, except for colour images read as grey: OpenCV computes the grey before
            colours are clipped.
        max_pixels: height times width of the largest image that is read.

    Raises:
        ModuleNotFoundError: `decoder` is "opencv", which is not installed.
        UnreadableImageError: the file cannot be read; the message has its path and the reason.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UnreadableImageError(f"cannot read {path}: it is not an ordinary file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"cannot read {path}: {error}") from error
    return decode_image(content, channels, str(path), decoder, max_pixels)


def decode_image(
    content: bytes,
    channels: int,
    name: str,
    decoder: str = "pillow",
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Decodes the content of an image file, as `read_image` does.

    Args:
        content: the bytes of the file.
        channels: 1 or 3.
        name: what messages call the file.
        decoder: "pillow" or "opencv".
        max_pixels: height times width of the largest image that is decoded.

    Raises:
        UnreadableImageError: the image cannot be decoded; the message has its name and the reason.
    """
    try:
        if not content:
            raise ValueError("the file is empty")
        try:
            return _decode(content, channels, decoder, max_pixels)
        except UnidentifiedImageError:
            raise ValueError(f"no image format starts with {content[:16]!r}") from None
    except ModuleNotFoundError:
        raise
    # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, EOFError and more.
    except Exception as error:
        raise UnreadableImageError(f"cannot read {name}: {error}") from error


def open_image(content: bytes) -> Image.Image:
    """Reads the header only: format, size and mode as stored. Nothing is decoded.

    Raises:
        PIL.UnidentifiedImageError, OSError: `content` is not an image.
    """
    file = io.BytesIO(content)
    return _Jpeg(file) if content.startswith(b"\xff\xd8\xff") else Image.open(file)


class _Jpeg(JpegImageFile):
    """A JPEG file whose EXIF block Pillow does not parse.

    Pillow parses it on opening, to find the print resolution, and warns about broken blocks.
    """

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def _decode(content: bytes, channels: int, decoder: str, max_pixels: int) -> Decoded:
    image = _open_within(content, max_pixels)
    ordinary = image.format == "JPEG" and image.mode in ("L", "RGB") and _transpose(image) is None
    if decoder == "opencv" and ordinary:
        return opencv.decode(content, channels)
    image.load()
    transpose = _transpose(image)
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    return image if transpose is None else image.transpose(transpose)


def _open_within(content: bytes, max_pixels: int) -> Image.Image:
    """`open_image`, where the image is not too large."""
    if max_pixels > MAX_PIXELS:  # where Pillow begins to refuse
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = open_image(content)
        pixels = math.prod(image.size)
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        image = None
    if image is None or pixels > max_pixels:
        raise ValueError(
            f"it has {pixels:,} pixels, and at most {max_pixels:,} are read; scale it down, or "
            f"train and evaluate with --config.data.max_pixels={pixels}"
        )
    return image


def _transpose(image: Image.Image) -> Image.Transpose | None:
    """The operation that turns the image upright, by its EXIF orientation; None: it is upright."""
    return _UPRIGHT.get(_orientation(image.info.get("exif", b"")))


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no defined white; save the image with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"greyscale values from {values.min()} to {values.max()} are beyond 16 bits; save the "
            "image with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))  # 65535 = 257 * 255


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 in the first directory of an EXIF block; 1 where it is absent or broken.

    Read here because Pillow would parse every tag of the block and warn about broken ones.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    if not order:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value
    except struct.error:  # an offset beyond the end of the block
        pass
    return 1
