# SPDX-License-Identifier: Apache-2.0
"""What is published of models: weights, and the accuracies they reach. Read, never measured here.

A family's file has a table `WEIGHTS` of these; `weights.catalog` finds them by name.
"""

import dataclasses
from typing import Any

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.preprocessing import Preprocessing

HUB = "hf_hub:"  # what the source of a repository on the Hugging Face hub begins with


@dataclasses.dataclass(frozen=True)
class Result:
    """Published accuracy on the ImageNet-1k validation set and on other test sets, in percent.

    Attributes:
        image_size: side in pixels of the evaluation.
        crop_fraction: crop of the evaluation.
        top1: top-1 on the validation set.
        top5: top-5 on it, None where only top-1 is published.
        real, v2, a, r, sketch: top-1 by ReaL's labels, on ImageNet-V2 (matched frequency), -A, -R
            and -Sketch; None where it is not known here.
    """

    image_size: int
    crop_fraction: float
    top1: float
    top5: float | None = None
    real: float | None = None
    v2: float | None = None
    a: float | None = None
    r: float | None = None
    sketch: float | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        model: name of the model.
        source: "hf_hub:<repository>" or the URL of a file.
        naming: naming of the tensors, a key of the family's `TORCH_NAMES`.
        licence: SPDX identifier, None where none could be read.
        results: published accuracies, the first at the size of training.
        image_size, crop_fraction, crop_mode: preprocessing at the size of training.
        num_classes: 1000 are those of ImageNet-1k.
        sha256: checksum of the file, None where none is published.
    """

    model: str
    source: str
    naming: str
    licence: str | None
    results: tuple[Result, ...]
    image_size: int = 224
    crop_fraction: float = 1.0
    crop_mode: str = "center"
    num_classes: int = 1000
    sha256: str | None = None

    def preprocessing(self, image_size: int | None = None) -> Preprocessing:
        """The published one at this size, None for the size of training.

        Where nothing is published at the size, the crop is that of training.
        """
        size = image_size or self.image_size
        crops = {result.image_size: result.crop_fraction for result in self.results}
        return Preprocessing(
            image_size=size,
            crop_fraction=crops.get(size, self.crop_fraction),
            crop_mode=self.crop_mode,
            class_names=CLASS_NAMES if self.num_classes == 1000 else None,
        )


def timm_weights(
    tag: str, licence: str | None, *results: tuple[float, ...], **fields
) -> tuple[str, Weights]:
    """Key and record of the weights `<model>.<tag>` of timm's repositories on the hub.

    Args:
        tag: name of the repository.
        licence: SPDX identifier.
        *results: fields of `Result` in their order.
        **fields: further fields of `Weights`.
    """
    rows = tuple(Result(int(size), *rest) for size, *rest in results)
    return tag, Weights(tag.partition(".")[0], f"{HUB}timm/{tag}", "timm", licence, rows, **fields)


def released_weights(
    model: str,
    source: str,
    licence: str | None,
    *results: tuple[Any, ...],
    naming: str = "official",
    **fields,
) -> tuple[str, Weights]:
    """Key and record of the weights of a model that its authors released, `<model>.official`.

    Args:
        model, source, licence, naming: fields of `Weights`.
        *results: fields of `Result` in their order.
        **fields: further fields of `Weights`.
    """
    rows = tuple(Result(int(size), *rest) for size, *rest in results)
    return f"{model}.official", Weights(model, source, naming, licence, rows, **fields)
