# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: a class for every pixel, by UperNet; mean intersection over union.

Losses and measures are mmsegmentation's. A loaded batch holds `image`, uint8 (B, H, W, C), and
`labels`, uint8 (B, H, W), 255 where a pixel does not count; in training also `image_shape`, int32
(B, 2), beyond which an image is padding. In evaluation labels have the size of the original image.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mambaout_jax.analysis.figures import draw_confusion_matrix
from mambaout_jax.analysis.segmentation_figures import (
    draw_labelled_images,
    draw_overlays,
    draw_worst_images,
)
from mambaout_jax.data.sets.image_files import Decoded
from mambaout_jax.data.sets.sources import SegmentationImages
from mambaout_jax.data.views.segmentation import EvaluationView, TrainingView
from mambaout_jax.data.views.segmentation import groups as groups_of
from mambaout_jax.heads.pixels import (
    Crops,
    Enlarged,
    cross_entropy_sums,
    enlarge,
    likeliest_classes,
)
from mambaout_jax.heads.upernet import TORCH_NAMES
from mambaout_jax.layers.resize import resize_linear
from mambaout_jax.metrics.coco import encode_mask
from mambaout_jax.metrics.miou import IGNORED, mean_iou, pixel_confusion, write_class_overlaps_csv
from mambaout_jax.models.dense import create_segmenter
from mambaout_jax.tasks.dense import Dense
from mambaout_jax.tasks.task import (
    Batch,
    Partial,
    Prediction,
    Score,
    Sums,
    concatenate,
)

_WORST = 24  # images that a partial result keeps for a picture
_THUMBNAIL = 128  # pixels, height and width of the maps of their classes
_FIGURES = ("confusion_matrix.png", "per_class_iou.csv", "worst_images.png")


@dataclasses.dataclass(frozen=True)
class Segmentation(Dense):
    """Which class does each pixel show? See `Task` for the methods.

    Attributes:
        config: the whole config; `data` and `segmentation` say how images are prepared and
            evaluated.
        class_names: in the order of the model's outputs.

    A partial result is `confusion`, int (K, K), pixels by label and prediction, and `worst`, a row
    for each of the images with the lowest mean IoU of their own: `index` in the set, `iou` in [0,
    1], and `classes`, uint8 (128, 128), what was predicted, squashed.
    """

    create: ClassVar = staticmethod(create_segmenter)
    torch_names: ClassVar = TORCH_NAMES

    def describe(self) -> str:
        return f"{self.num_classes} classes of pixels"

    def score(self) -> Score:
        return Score("miou", "points")

    def groups(self, source: SegmentationImages, train: bool = False) -> Sequence[int] | None:
        return None if train else groups_of(source.image_sizes)

    def training_view(self) -> TrainingView:
        return TrainingView(self.config)

    def evaluation_view(self) -> EvaluationView:
        return EvaluationView.of(self.config)

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Normalises; what is beyond `image_shape` becomes 0 after that."""
        return {**batch, "image": self.normalised(batch)}

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """Mean cross-entropy of all pixels, ignored ones counting as 0, and the auxiliary one.

        Ignored pixels are in the divisor, as by mmseg's default (`avg_non_ignore=False`).
        """
        both, updated = model.apply(
            {"params": params, **collections},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(collections),
        )
        labels = batch["labels"]
        pixels = labels.shape[1] * labels.shape[2]
        main, auxiliary = (cross_entropy_sums(logits, labels) / pixels for logits in both)  # (B,)
        losses = main + self.config.segmentation.auxiliary_weight * auxiliary
        sums = {
            "loss": losses.sum(),
            "main_loss": main.sum(),
            "auxiliary_loss": auxiliary.sum(),
            "count": jnp.asarray(losses.size, losses.dtype),
        }
        return losses.mean(), (dict(updated), sums)

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Partial:
        labels, mask = batch["labels"], batch["mask"]
        height, width = labels.shape[1:]
        views = self._views(model, variables, batch["image"], (height, width))
        classes, _ = likeliest_classes(views)
        labels = jnp.where(mask[:, None, None], labels, IGNORED)
        count = jax.vmap(lambda label, guess: pixel_confusion(label, guess, self.num_classes))
        confusion = count(labels, classes)  # (B, K, K)
        return {
            "confusion": confusion.sum(0),
            "worst": {
                "index": jnp.where(mask, batch["index"], -1),
                "iou": jax.vmap(_own_iou)(confusion),
                "classes": _thumbnails(classes),
            },
        }

    def _views(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        images: Float[Array, "B H W C"],
        size: tuple[int, int],
    ) -> list[Enlarged]:
        """Logits at a size, for each scale and for mirrored images as the config says.

        As mmseg 0.x, scales are of the image that the view has resized, and not of the original;
        unlike there, it is this image that is resized again, and not the original.
        """
        config, views = self.config.segmentation, []
        for scale in config.evaluation_scales:
            scaled = [max(1, int(n * scale + 0.5)) for n in images.shape[1:3]]
            x = resize_linear(images, scaled)
            for flip in (False, True) if config.evaluation_flip else (False,):
                view = self._view(model, variables, x[:, :, ::-1] if flip else x, size)
                views.append(view._replace(columns=view.columns[::-1]) if flip else view)
        return views

    def _view(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        images: Float[Array, "B H W C"],
        size: tuple[int, int],
    ) -> Enlarged:
        """Logits of images, resized to their size and then to another."""
        height, width = images.shape[1:3]
        if self.config.segmentation.evaluation_mode == "whole":
            logits: Any = model.apply(variables, images, train=False)
            return enlarge(logits, (height, width), size)
        stride = self.config.segmentation.slide_stride
        crops = Crops.of((height, width), self.config.data.image_size, stride)
        logits = model.apply(variables, crops.cut(images), train=False)
        return crops.average(logits, size)

    def merge(self, partials: Sequence[Partial]) -> Partial:
        """Adds counts, and keeps the worst images."""
        rows = concatenate([partial["worst"] for partial in partials])
        rows = {name: column[rows["index"] >= 0] for name, column in rows.items()}
        order = np.lexsort((rows["index"], rows["iou"]))[:_WORST]
        return {
            "confusion": sum(partial["confusion"] for partial in partials),
            "worst": {name: column[order] for name, column in rows.items()},
        }

    def metrics(self, partial: Partial) -> dict[str, float]:
        """`miou`, `macc` and `aacc` in percent, see `metrics.miou.mean_iou`."""
        return mean_iou(partial["confusion"])

    def view_image(self, image: Decoded) -> dict[str, np.ndarray]:
        return {"image": self.evaluation_view().pixels(image)}

    def images_at_once(self) -> int:
        return 4

    def predict(
        self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
    ) -> dict[str, Array]:
        """`classes`, int32 (B, H, W), and their `probability`, of the pixels of prepared images."""
        _, height, width, _ = batch["image"].shape
        views = self._views(model, variables, batch["image"], (height, width))
        classes, probability = likeliest_classes(views)
        return {"classes": classes, "probability": probability}

    def findings(self, output: Mapping[str, np.ndarray], top: int) -> tuple[dict[str, Any], ...]:
        """The classes with most pixels.

        Each has its `name`, its `share` of the pixels, their mean `probability`, and where they
        are: `mask`, run lengths in COCO's compressed form.
        """
        classes = output["classes"]
        counts = np.bincount(classes.reshape(-1), minlength=self.num_classes)
        order = np.argsort(-counts, kind="stable")[:top]
        return tuple(
            {
                "name": self.class_names[i],
                "probability": float(output["probability"][classes == i].mean()),
                "share": float(counts[i] / classes.size),
                "mask": encode_mask(classes == i),
            }
            for i in order
            if counts[i]
        )

    def draw_batch(self, batch: Batch, path: Path) -> None:
        """Draws each image beside its labels, under the names of its largest classes."""
        draw_labelled_images(
            self.pixels(batch["image"]), np.asarray(batch["labels"]), self.class_names, path
        )

    @classmethod
    def evaluation_files(cls) -> tuple[str, ...]:
        return _FIGURES

    def draw_evaluation(
        self, partial: Partial, source: SegmentationImages, folder: Path
    ) -> list[Path]:
        """Writes confusion_matrix.png, of pixels, per_class_iou.csv and worst_images.png."""
        folder.mkdir(parents=True, exist_ok=True)
        matrix, names, worst = partial["confusion"], self.class_names, partial["worst"]
        files = [folder / name for name in _FIGURES]
        draw_confusion_matrix(matrix, names, files[0])
        write_class_overlaps_csv(matrix, names, files[1])
        examples = [source[int(index)] for index in worst["index"]]
        draw_worst_images(examples, worst["classes"], worst["iou"], names, files[2])
        return files

    def draw_predictions(self, predictions: Sequence[Prediction], path: str | Path) -> None:
        """Draws images with their classes in colours, and the names of the largest."""
        draw_overlays(predictions, self.class_names, path)


def _own_iou(confusion: Int[Array, "K K"]) -> Float[Array, ""]:
    """Mean IoU in [0, 1] of one image over the classes that it has or is said to have."""
    correct = jnp.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - correct
    present = union > 0
    return jnp.sum(correct / jnp.maximum(union, 1)) / jnp.maximum(present.sum(), 1)


def _thumbnails(classes: Int[Array, "B H W"]) -> Array:
    """Maps of classes, uint8 (B, 128, 128): the nearest pixels."""
    rows, columns = (
        (np.arange(_THUMBNAIL) * 2 + 1) * n // (2 * _THUMBNAIL) for n in classes.shape[1:]
    )
    return classes[:, rows][:, :, columns].astype(jnp.uint8)
