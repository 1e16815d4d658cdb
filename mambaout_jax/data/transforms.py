# SPDX-License-Identifier: Apache-2.0
"""One image to `image_size` x `image_size` uint8 pixels: the evaluation view and random crops.

Everything is Pillow, so that the evaluation view equals that of torchvision and timm bit for bit.
Sizes are in pixels; a box is (left, top, right, bottom).
"""

import math

import grain
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mambaout_jax.config import Config

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


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
    rounded down; the crop's offset is rounded half to even. These are torchvision's rules.

    Args:
        image: of mode "L" or "RGB".
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
    resized = image.resize((width, height), RESAMPLING[interpolation])
    return _pixels(resized.crop((left, top, left + size, top + size)))


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
        width, height: of the image.
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


class EvaluationView(grain.transforms.Map):
    """`evaluation_view` by the settings of a config: {image, label} → {image, label}."""

    def __init__(self, config: Config):
        self._size = config.data.image_size
        self._settings = {
            "crop_fraction": config.data.crop_fraction,
            "crop_mode": config.data.crop_mode,
            "interpolation": config.data.interpolation,
        }

    def map(self, example: dict) -> dict:
        """PIL image and int → uint8 (image_size, image_size, C) and int32."""
        image = evaluation_view(example["image"], self._size, **self._settings)
        return {"image": image, "label": np.int32(example["label"])}


class TrainingView(grain.transforms.RandomMap):
    """Random crop and flip by `config.augment`: {image, label, replaced} → the same.

    Args:
        config: reads `augment`, `data.image_size`, `data.interpolation` and, for the crops "shift"
            and "none", which start from the evaluation view, `data.crop_fraction`.
    """

    def __init__(self, config: Config):
        # Plain values: a Config costs microseconds per access, here once per example.
        self._size = config.data.image_size
        self._interpolation = config.data.interpolation
        self._crop_fraction = config.data.crop_fraction
        self._crop_mode = config.data.crop_mode
        self._augment = config.augment.to_dict()

    def random_map(self, example: dict, rng: np.random.Generator) -> dict:
        """PIL image, int and bool → uint8 (image_size, image_size, C), int32 and bool."""
        image = self._crop(example["image"], rng)
        if rng.random() < self._augment["flip_probability"]:
            image = image[:, ::-1]
        return {
            "image": image,
            "label": np.int32(example["label"]),
            "replaced": np.bool_(example["replaced"]),
        }

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> UInt8[np.ndarray, "H W C"]:
        augment, interpolation = self._augment, self._interpolation
        if augment["random_interpolation"]:
            interpolation = ("bilinear", "bicubic")[rng.integers(2)]
        if augment["crop"] == "random_resized":
            box = random_resized_crop_box(
                *image.size, scale=augment["scale"], ratio=augment["ratio"], rng=rng
            )
            size = (self._size, self._size)
            return _pixels(image.crop(box).resize(size, RESAMPLING[interpolation]))
        view = evaluation_view(
            image,
            self._size,
            crop_fraction=self._crop_fraction,
            crop_mode=self._crop_mode,
            interpolation=interpolation,
        )
        if augment["crop"] == "none":
            return view
        reach = augment["shift_pixels"]
        down, right = rng.integers(-reach, reach, size=2, endpoint=True)
        return shift(view, int(down), int(right))


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W, C)
