# SPDX-License-Identifier: Apache-2.0
"""One image to `image_size` x `image_size` uint8 pixels: the evaluation view and random views.

Pillow does it, so that the evaluation view equals that of torchvision and timm bit for bit; the
crops of the training view can be OpenCV's. Sizes are in pixels; a box is (left, top, right,
bottom).
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from mambaout_jax.config import Config
from mambaout_jax.data.sets.image_files import Decoded, pixels_of
from mambaout_jax.data.views import opencv, rand_augment
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.settings import INTERPOLATIONS

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


# Longer side of a resized image, over that of the crop, above which the crop alone is resized: the
# whole image, which is torchvision's way and kept bit for bit below, could take gigabytes.
_LONGEST = 16


def evaluation_view(
    image: Image.Image,
    size: int,
    *,
    crop_fraction: float = 1.0,
    crop_mode: str = "center",
    interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "H W C"]:
    """The central crop of the image, resized so that the crop covers `crop_fraction` of it.

    The shorter side is resized to floor(size / crop_fraction), the longer one in proportion and
    rounded down; the crop's offset is rounded half to even. These are torchvision's rules. Of
    a resized image that would be more than 16 times as long as the crop only the crop is computed,
    which gives the same up to rounding.

    Args:
        image: Pillow image of mode "L" or "RGB".
        size: H and W of the result.
        crop_fraction: side of the crop over the shorter resized side, in (0, 1].
        crop_mode: "center", as above; "squash": both sides are resized to the length of the
            shorter one, whatever their proportion.
        interpolation: "bilinear" or "bicubic", with antialiasing.

    Returns:
        Pixels, (size, size, 1) for mode "L", (size, size, 3) for "RGB".

    Raises:
        ValueError: `crop_fraction` is out of range.
    """
    if not 0 < crop_fraction <= 1:
        raise ValueError(
            f"data.crop_fraction={crop_fraction} is out of range; it must be above 0 and at most 1"
        )
    short, long = math.floor(size / crop_fraction), max(image.size)
    long = short if crop_mode == "squash" else int(short * long / min(image.size))
    width, height = (short, long) if image.width <= image.height else (long, short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if long > _LONGEST * size:
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return pixels_of(image.resize((size, size), RESAMPLING[interpolation], box))
    resized = image.resize((width, height), RESAMPLING[interpolation])
    return pixels_of(resized.crop((left, top, left + size, top + size)))


def random_resized_crop_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws a box by the rule of Inception training, as torchvision and timm do.

    Ten tries: area uniform in `scale` times that of the image, log of width over height uniform
    between the logs of `ratio`, position uniform among those inside the image. Where no try fits,
    the largest central box whose ratio is in `ratio`.

    Args:
        width, height: size of the image.
        scale: smallest and largest area, as a share of the image's.
        ratio: smallest and largest width over height.
        rng: the source of randomness.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def shift(image: UInt8[np.ndarray, "H W C"], down: int, right: int) -> UInt8[np.ndarray, "H W C"]:
    """Translates the image; zeros come in.

    Args:
        image: pixels.
        down, right: pixels, negative for up and left.
    """
    height, width, _ = image.shape
    shifted = np.zeros_like(image)
    shifted[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return shifted


class EvaluationView:
    """`evaluation_view` by given settings: {image, label} → {image, label}."""

    def __init__(self, preprocessing: Preprocessing):
        self._size = preprocessing.image_size
        self._settings = {
            "crop_fraction": preprocessing.crop_fraction,
            "crop_mode": preprocessing.crop_mode,
            "interpolation": preprocessing.interpolation,
        }

    def __call__(self, example: dict) -> dict:
        """PIL image and int → uint8 (image_size, image_size, C) and int32."""
        return {"image": self.pixels(example["image"]), "label": np.int32(example["label"])}

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
        """What a model sees of an image."""
        return evaluation_view(image, self._size, **self._settings)


class TrainingView:
    """Random crop, flip, RandAugment and colour jitter: {image, label} → {image, label}.

    This is the order of timm. The image that comes in is a Pillow image, or pixels (H, W, C) as
    `opencv.decode` returns them; `data.decoder` says who resizes random crops.

    Args:
        config: reads `augment`, `data.image_size`, `data.interpolation`, `data.decoder`,
            `data.mean` (the colour that RandAugment fills with) and, for the crops "shift" and
            "none", which start from the evaluation view, `data.crop_fraction`.

    Raises:
        ModuleNotFoundError: `data.decoder` is "opencv", and it is not installed.
    """

    def __init__(self, config: Config):
        # Plain values: a Config costs microseconds per access, here once per example.
        self._size = config.data.image_size
        self._crop_fraction = config.data.crop_fraction
        self._crop_mode = config.data.crop_mode
        self._augment = config.augment.to_dict()
        one = (config.data.interpolation,)
        self._interpolations = INTERPOLATIONS if config.augment.random_interpolation else one
        self._rand_augment = {
            name: self._augment[f"rand_augment_{name}"]
            for name in ("layers", "magnitude", "deviation", "probability")
        }
        fill: tuple[int, ...] = tuple(min(255, round(255 * value)) for value in config.data.mean)
        self._fill = fill if config.data.channels == 3 else fill[0]
        self._opencv = config.data.decoder == "opencv"
        if self._opencv:
            opencv.check_installed()

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        """Image and int → uint8 (image_size, image_size, C) and int32."""
        image = self._crop(example["image"], rng)
        if rng.random() < self._augment["flip_probability"]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        operations = rand_augment.draw(
            rng, **self._rand_augment, interpolations=self._interpolations
        )
        warp = opencv.warp if self._opencv else rand_augment.warp
        image = rand_augment.apply(image, operations, self._fill, warp)
        if self._augment["color_jitter"]:
            image = color_jitter(image, self._augment["color_jitter"], rng)
        return {"image": pixels_of(image), "label": np.int32(example["label"])}

    def _crop(self, image: Decoded, rng: np.random.Generator) -> Image.Image:
        augment = self._augment
        if augment["crop"] == "random_resized":
            return self._random_resized_crop(image, rng)
        view = evaluation_view(
            _image(image),
            self._size,
            crop_fraction=self._crop_fraction,
            crop_mode=self._crop_mode,
            interpolation=self._draw_interpolation(rng),
        )
        if augment["crop"] == "shift":
            reach = augment["shift_pixels"]
            down, right = rng.integers(-reach, reach, size=2, endpoint=True)
            view = shift(view, int(down), int(right))
        return _image(view)

    def _random_resized_crop(self, image: Decoded, rng: np.random.Generator) -> Image.Image:
        size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        box = random_resized_crop_box(
            *size, scale=self._augment["scale"], ratio=self._augment["ratio"], rng=rng
        )
        interpolation = self._draw_interpolation(rng)
        if self._opencv:
            return _image(opencv.crop_and_resize(pixels_of(image), box, self._size, interpolation))
        side = self._size
        return _image(image).crop(box).resize((side, side), RESAMPLING[interpolation])

    def _draw_interpolation(self, rng: np.random.Generator) -> str:
        return self._interpolations[rng.integers(len(self._interpolations))]


def color_jitter(image: Image.Image, reach: float, rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast and saturation in random order, as torchvision does.

    Args:
        image: Pillow image of mode "L" or "RGB".
        reach: each factor is uniform between 1 - reach and 1 + reach.
        rng: the source of randomness.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(3):
        image = kinds[kind](image).enhance(rng.uniform(1 - reach, 1 + reach))
    return image


def _image(image: Decoded) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
