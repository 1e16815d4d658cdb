# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al. 2020) with operations that grow with their magnitude.

These are the set, the ranges and the fill of timm's "rand-m9-mstd0.5-inc1" (`timm/data/
auto_augment.py`). What is drawn (`draw`) is apart from what is done with it (`apply`): the same
draws give timm's pixels.

The strength of an operation is magnitude / 10 with a random sign, in [-1, 1]. Those that change
values are functions of a Pillow image of mode "L" or "RGB" and the strength, of which some take the
size only; those that move pixels give the coefficients of an affine map.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_LARGEST = 10.0  # magnitude
_DEGREES, _SHEAR, _TRANSLATION = 30.0, 0.3, 0.45  # at this magnitude; the last as a share of a side

Fill = int | tuple[int, ...]
Coefficients = tuple[float, float, float, float, float, float]
Warp = Callable[[Image.Image, Coefficients, str, Fill], Image.Image]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One drawn operation.

    Attributes:
        name: key of `OPERATIONS` or `MOVES`.
        magnitude: as drawn; cut to 0..10 where it is applied.
        negative: the sign of an operation that has a direction.
        interpolation: "bilinear" or "bicubic", of an operation that moves pixels.
    """

    name: str
    magnitude: float
    negative: bool
    interpolation: str


def draw(
    rng: np.random.Generator,
    *,
    layers: int,
    magnitude: float,
    deviation: float,
    probability: float,
    interpolations: Sequence[str],
) -> tuple[Operation, ...]:
    """Draws the operations of one image, at most `layers`, with replacement.

    Args:
        rng: the source of randomness.
        layers: operations before some are left out.
        magnitude, deviation: mean and standard deviation of each operation's magnitude.
        probability: that an operation is not left out.
        interpolations: one of them is drawn per operation.
    """
    return tuple(
        Operation(
            name=NAMES[int(rng.integers(len(NAMES)))],
            magnitude=float(rng.normal(magnitude, deviation)),
            negative=bool(rng.random() < 0.5),
            interpolation=interpolations[int(rng.integers(len(interpolations)))],
        )
        for _ in range(layers)
        if rng.random() < probability
    )


def warp(
    image: Image.Image, coefficients: Coefficients, interpolation: str, fill: Fill
) -> Image.Image:
    """Gives pixel (x, y) the value at (a x + b y + c, d x + e y + f), by Pillow.

    Args:
        image: Pillow image of mode "L" or "RGB".
        coefficients: a to f, of positions in pixels, where a pixel's centre has the fraction 0.5.
        interpolation: "bilinear" or "bicubic".
        fill: grey level or colour that comes in from outside the image.
    """
    resample = Image.Resampling[interpolation.upper()]
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=resample, fillcolor=fill
    )


def apply(
    image: Image.Image, operations: Sequence[Operation], fill: Fill, warp: Warp = warp
) -> Image.Image:
    """The image after the operations, in their order.

    Args:
        image: Pillow image of mode "L" or "RGB".
        operations: as drawn.
        fill: grey level or colour that comes in from outside the image.
        warp: moves pixels, as the function of this name does.
    """
    for operation in operations:
        strength = min(max(operation.magnitude, 0.0), _LARGEST) / _LARGEST
        strength = -strength if operation.negative else strength
        if operation.name in MOVES:
            coefficients = MOVES[operation.name](strength, *image.size)
            image = warp(image, coefficients, operation.interpolation, fill)
        else:
            image = OPERATIONS[operation.name](image, strength)
    return image


def auto_contrast(image: Image.Image, strength: float) -> Image.Image:
    """Stretches each channel over 0..255, whatever the strength."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, strength: float) -> Image.Image:
    """Makes each channel's histogram flat, whatever the strength."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, strength: float) -> Image.Image:
    """The negative, whatever the strength."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, strength: float) -> Image.Image:
    """Keeps the 4 highest bits of each value, and fewer with strength: none at 1."""
    bits = 4 - int(abs(strength) * 4)
    if bits == 0:  # black, as in the Pillow of the paper; Pillow 13 refuses it
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


def solarize(image: Image.Image, strength: float) -> Image.Image:
    """Inverts values from a threshold on, which falls from 256 to 0 with strength."""
    return ImageOps.solarize(image, 256 - int(abs(strength) * 256))


def solarize_add(image: Image.Image, strength: float) -> Image.Image:
    """Brightens values below 128 by up to 110."""
    add = int(abs(strength) * 110)
    table = [value + add if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(kind: Callable) -> Callable[[Image.Image, float], Image.Image]:
    def enhance(image: Image.Image, strength: float) -> Image.Image:
        return kind(image).enhance(max(0.1, 1 + 0.9 * strength))

    return enhance


def rotate(strength: float, width: int, height: int) -> Coefficients:
    """Counter-clockwise around the centre, by up to 30 degrees."""
    angle = math.radians(strength * _DEGREES)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def shear_x(strength: float, width: int, height: int) -> Coefficients:
    """Moves rows, each by up to 0.3 of its distance from the top."""
    return 1, strength * _SHEAR, 0, 0, 1, 0


def shear_y(strength: float, width: int, height: int) -> Coefficients:
    """Moves columns, each by up to 0.3 of its distance from the left."""
    return 1, 0, 0, strength * _SHEAR, 1, 0


def translate_x(strength: float, width: int, height: int) -> Coefficients:
    """Moves to the left by up to 0.45 of the width."""
    return 1, 0, strength * _TRANSLATION * width, 0, 1, 0


def translate_y(strength: float, width: int, height: int) -> Coefficients:
    """Moves up by up to 0.45 of the height."""
    return 1, 0, 0, 0, 1, strength * _TRANSLATION * height


# Of values; and of places, which interpolate and fill.
OPERATIONS = {
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
MOVES = {
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
NAMES = (*OPERATIONS, *MOVES)
