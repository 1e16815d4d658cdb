# SPDX-License-Identifier: Apache-2.0
"""Detection and instance segmentation: Mask R-CNN, with box and mask AP as COCO counts them.

Examples are those of `sources.DetectionImages`, loaded by `views.detection`: images in the upper
left corner of a canvas, of which `image_shape` says how much they fill.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.analysis.detection_figures import (
    draw_class_precision,
    draw_pictures,
    draw_precision,
    picture_objects,
    write_class_precision,
)
from mambaout_jax.data.sets.image_files import Decoded, pixels_of
from mambaout_jax.data.sets.listing import shown
from mambaout_jax.data.sets.sources import DetectionImages
from mambaout_jax.data.views.detection import Canvases, EvaluationView, TrainingView
from mambaout_jax.heads.losses import detection_losses
from mambaout_jax.heads.mask import paste_masks
from mambaout_jax.heads.mask_rcnn import TORCH_NAMES
from mambaout_jax.heads.targets import uniform_draw
from mambaout_jax.metrics.coco import CocoResult, decode_mask, encode_mask, evaluate_coco
from mambaout_jax.models.dense import create_detector
from mambaout_jax.tasks.coco_results import (
    SURE,
    Mistakes,
    check_all_seen,
    coco_detections,
    merge_rows,
    pasted,
    rows_of_batch,
    worst_images,
)
from mambaout_jax.tasks.dense import Dense
from mambaout_jax.tasks.task import Batch, Partial, Prediction, Score, Sums

_KINDS = {"box": "bbox", "mask": "segm"}
_FIGURES = ("precision_recall.png", "per_class_ap.csv", "per_class_ap.png", "worst_images.png")
_DRAWN = 16  # images in a picture


@dataclasses.dataclass(frozen=True)
class Detection(Dense):
    """Where are the objects of the classes, and what are their shapes? See `Task` for the methods.

    Attributes:
        config: the whole config; `data` and `detection` say how images are prepared.
        class_names: in the order of the model's outputs.
        measured: the set whose objects `metrics` compares with (`measured_on`).

    A partial result is described in `coco_results`.
    """

    measured: DetectionImages | None = None

    create: ClassVar = staticmethod(create_detector)
    torch_names: ClassVar = TORCH_NAMES

    def describe(self) -> str:
        return f"objects of {self.num_classes} classes"

    def score(self) -> Score:
        return Score("box_ap", "points")

    def measured_on(self, source: DetectionImages) -> "Detection":
        return dataclasses.replace(self, measured=source)

    def groups(self, source: DetectionImages, train: bool = False) -> Sequence[int] | None:
        return Canvases.of(self.config, train).groups(source.image_sizes)

    def training_view(self) -> TrainingView:
        return TrainingView(self.config)

    def evaluation_view(self) -> EvaluationView:
        return EvaluationView.of(self.config)

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Normalises, and sets what is beyond an image to 0; in training adds `key` (B,)."""
        images = self.normalised(batch)
        if key is None:
            return {**batch, "image": images}
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
        return {**batch, "image": images, "key": keys}

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """The sum of the five losses, see `heads.losses`."""
        draw, number = uniform_draw(batch["key"]), self.config.detection.sampled_regions

        def losses_of(detector: Any) -> dict[str, Array]:
            maps = detector.pyramid(batch["image"], train=True)
            return detection_losses(detector, maps, batch, draw, number)

        run: Any = nn.apply(losses_of, model, mutable=list(collections))
        losses, updated = run({"params": params, **collections}, rngs={"dropout": key})
        total, count = jnp.stack(list(losses.values())).sum(), len(batch["image"])
        sums = {name: count * loss for name, loss in {"loss": total, **losses}.items()}
        sums["left_out"] = batch["left_out"].sum().astype(total.dtype)
        return total, (dict(updated), {**sums, "count": jnp.asarray(count, total.dtype)})

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Partial:
        found: Any = model.apply(variables, batch["image"], batch["image_shape"], train=False)
        return rows_of_batch(found, batch)

    def merge(self, partials: Sequence[Partial]) -> Partial:
        return merge_rows(partials)

    def results(self, partial: Partial, source: DetectionImages) -> dict[str, CocoResult]:
        """What COCO counts of boxes and of masks over a whole set.

        Raises:
            RuntimeError: an image of the set is missing or came twice.
        """
        check_all_seen(partial, len(source))
        truth, found = source.ground_truth(), coco_detections(partial, source)
        return {name: evaluate_coco(truth, found, kind) for name, kind in _KINDS.items()}

    def metrics(self, partial: Partial) -> dict[str, float]:
        """`box_ap` and `mask_ap` in percent, and COCO's other precisions that are defined.

        Raises:
            ValueError: the set has no objects that count.
        """
        if self.measured is None:
            raise ValueError("there is nothing to compare with; use task.measured_on(source)")
        results = self.results(partial, self.measured)
        if results["box"].figures["ap"] < 0:
            raise ValueError(
                "the set has no objects (crowds do not count), so that there is no average "
                "precision; evaluate on images that have some"
            )
        return {
            f"{name}_{figure}": 100 * value
            for name, result in results.items()
            for figure, value in result.figures.items()
            if figure.startswith("ap") and value >= 0  # -1: no object of that size
        }

    def view_image(self, image: Decoded) -> dict[str, np.ndarray]:
        seen = self.evaluation_view()({"image": image, "image_id": 0})
        return {name: seen[name] for name in ("image", "image_shape")}

    def images_at_once(self) -> int:
        return 8

    def predict(
        self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
    ) -> dict[str, Array]:
        """What a detector finds, see `Detector.__call__`, and the `size` of the images.

        Boxes are in pixels of the images as the model sees them.
        """
        images, shapes = batch["image"], batch.get("image_shape")
        if shapes is None:
            shapes = jnp.broadcast_to(jnp.asarray([images.shape[1:3]], jnp.int32), (len(images), 2))
        found: Any = model.apply(variables, images, shapes, train=False)
        return {**found, "size": shapes}

    def findings(self, output: Mapping[str, np.ndarray], top: int) -> tuple[dict[str, Any], ...]:
        """The surest objects, in pixels of what the model saw.

        Each has its `name` and `probability`, `box`, x1 y1 x2 y2, and `mask`, run lengths in
        COCO's compressed form.
        """
        found = np.flatnonzero(output["labels"] >= 0)[:top]
        height, width = map(int, output["size"])
        masks = paste_masks(output["masks"][found], output["boxes"][found], (height, width))
        return tuple(
            {
                "name": self.class_names[output["labels"][i]],
                "probability": float(output["scores"][i]),
                "box": np.round(output["boxes"][i].astype(float), 2).tolist(),
                "mask": encode_mask(mask),
            }
            for i, mask in zip(found, masks, strict=True)
        )

    def draw_batch(self, batch: Batch, path: Path) -> None:
        """Draws the first images with the objects that are learned from them."""
        pictures, titles = [], []
        pixels = self.pixels(batch["image"])
        for i, image in enumerate(pixels[:_DRAWN]):
            height, width = (int(side) for side in batch["image_shape"][i])
            labels = np.asarray(batch["labels"][i])
            present = np.flatnonzero(labels >= 0)
            masks = np.unpackbits(np.asarray(batch["masks"][i])[present], axis=-1).astype(bool)
            pictures.append(
                picture_objects(
                    image[:height, :width],
                    np.asarray(batch["boxes"][i])[present],
                    masks[:, :height, :width],
                    labels[present],
                    [self.class_names[label] for label in labels[present]],
                )
            )
            titles.append(f"{len(present)} objects, {width} x {height} pixels")
        draw_pictures(pictures, titles, path)

    @classmethod
    def evaluation_files(cls) -> tuple[str, ...]:
        return _FIGURES

    def draw_evaluation(
        self, partial: Partial, source: DetectionImages, folder: Path
    ) -> list[Path]:
        """Writes precision_recall.png, per_class_ap.csv and .png, and worst_images.png.

        Where no image has a mistake, an older worst_images.png is removed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in _FIGURES]
        results, truth = self.results(partial, source), source.ground_truth()
        panels = {f"{name} overlap": result.precision for name, result in results.items()}
        draw_precision(panels, files[0])
        counts = [
            sum(row["category_id"] == number and not row["iscrowd"] for row in truth["annotations"])
            for number in source.category_ids
        ]
        order = np.searchsorted(results["box"].category_ids, source.category_ids)
        by_class = {f"{name} AP": result.per_class()[order] for name, result in results.items()}
        write_class_precision(self.class_names, np.asarray(counts), by_class, files[1])
        draw_class_precision(self.class_names, by_class, files[2])
        worst = worst_images(partial, source, _DRAWN)
        if not worst:
            files[3].unlink(missing_ok=True)
            return files[:3]
        pictures = [self._picture_mistakes(partial, source, mistakes) for mistakes in worst]
        titles = [f"{m.wrong} wrong, {len(m.missed[1])} missed" for m in worst]
        draw_pictures(pictures, titles, files[3])
        return files

    def _picture_mistakes(
        self, partial: Partial, source: DetectionImages, mistakes: Mistakes
    ) -> UInt8[np.ndarray, "h w 3"]:
        """What was found in an image, and boxes of what was missed."""
        image, names = pixels_of(source[mistakes.index]["image"]), self.class_names
        found, (boxes, labels) = mistakes.found, mistakes.missed
        size = np.asarray(image.shape[:2])
        masks = np.concatenate((pasted(partial, found, size), np.zeros((len(labels), *size), bool)))
        texts = [
            *(f"{names[partial['label'][i]]} {100 * partial['score'][i]:.0f} %" for i in found),
            *(f"missed {names[label]}" for label in labels),
        ]
        boxes = np.concatenate((partial["box"][found], boxes))
        labels = np.concatenate((partial["label"][found], labels))
        return picture_objects(image, boxes, masks, labels, texts)

    def draw_predictions(self, predictions: Sequence[Prediction], path: str | Path) -> None:
        """Draws images with the objects that were found, those of a probability of 0.5 or more."""
        pictures, titles = [], []
        for prediction in predictions:
            sure = [row for row in prediction.findings if row["probability"] >= SURE]
            boxes = np.asarray([row["box"] for row in sure], np.float32).reshape(-1, 4)
            size = prediction.image.shape[:2]
            masks = [decode_mask(row["mask"]) for row in sure] or np.zeros((0, *size), bool)
            labels = np.asarray([self.class_names.index(row["name"]) for row in sure], int)
            texts = [f"{row['name']} {100 * row['probability']:.0f} %" for row in sure]
            pictures.append(
                picture_objects(prediction.image, boxes, np.asarray(masks), labels, texts)
            )
            titles.append(f"{shown(prediction.path.name)}\n{len(sure)} objects")
        draw_pictures(pictures, titles, path)
