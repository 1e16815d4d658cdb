# SPDX-License-Identifier: Apache-2.0
"""How an image becomes a model's input: read from a config or from weights, written to a config."""

import dataclasses

from mambaout_jax.config import IMAGENET_MEAN, IMAGENET_STD, Config
from mambaout_jax.settings import MAX_IMAGE_SIZE


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input, and what the outputs are called.

    Attributes:
        image_size: pixels, height and width.
        crop_fraction: side of the central crop over the resized side, in (0, 1].
        crop_mode: "center": the shorter side is resized, proportions stay; "squash": both sides are
            resized to the same length.
        interpolation: "bilinear" or "bicubic".
        mean, std: per channel, of pixel values in [0, 1].
        class_names: names in the order of the outputs; None if they are unknown.

    Raises:
        ValueError: `image_size` is out of range.
    """

    image_size: int
    crop_fraction: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"image_size={self.image_size} is out of range; it must be from 1 to "
                f"{MAX_IMAGE_SIZE} pixels"
            )

    @classmethod
    def of(cls, data: Config, class_names: tuple[str, ...] | None = None) -> "Preprocessing":
        """The preprocessing that section `data` of a config describes."""
        values = {name: data[name] for name in _SETTINGS}
        values |= {name: tuple(values[name]) for name in ("mean", "std")}
        return cls(**values, class_names=class_names)

    def write_to(self, data: Config) -> None:
        """Sets section `data` of a config to this preprocessing, including `channels`."""
        for name in _SETTINGS:
            data[name] = getattr(self, name)
        data.channels = len(self.mean)


# The fields that are settings of the same names.
_SETTINGS = tuple(
    field.name for field in dataclasses.fields(Preprocessing) if field.name != "class_names"
)
