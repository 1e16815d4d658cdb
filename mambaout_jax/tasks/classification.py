# SPDX-License-Identifier: Apache-2.0
"""Image classification: cross-entropy against soft targets, top-1 and top-5.

Examples are {image, label}. A loaded batch holds `image`, uint8 (B, H, W, C), and `label`, int32
(B,); in evaluation it may instead say by `right` and `competing`, bool (B, num_classes), which
classes are right and between which the model has to choose.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mambaout_jax.analysis.figures import draw_confusion_matrix, draw_image_grid
from mambaout_jax.config import Config
from mambaout_jax.data.sets.listing import shown
from mambaout_jax.data.sets.renumbered import Renumbered
from mambaout_jax.data.sets.sources import LabelledImages, Source
from mambaout_jax.data.views.crops import EvaluationView, TrainingView
from mambaout_jax.metrics.confusion import confusion_matrix, write_per_class_csv
from mambaout_jax.metrics.hits import hit_sums
from mambaout_jax.models import create_model
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.tasks.augment import augment_batch, normalise
from mambaout_jax.tasks.named import Named, names_of_weights
from mambaout_jax.tasks.task import (
    Batch,
    Partial,
    Prediction,
    Score,
    Sums,
    add_up,
    concatenate,
    prepared_config,
)
from mambaout_jax.weights.load import load_pretrained

_MOST_MISTAKES = 64  # in one picture
_FIGURES = ("confusion_matrix.png", "per_class.csv", "mistakes.png")


def soft_targets(
    labels: Int[Array, "B"], num_classes: int, label_smoothing: float = 0.0
) -> Float[Array, "B num_classes"]:
    """One-hot targets, a share of them spread over all classes (Szegedy et al. 2016)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def predict(
    model: nn.Module, variables: Mapping[str, Any], images: Float[ArrayLike, "B H W C"]
) -> Float[Array, "B num_classes"]:
    """Class probabilities of normalised images.

    Raises:
        ValueError: the images are not (B, H, W, C).
    """
    if np.ndim(images) != 4:
        raise ValueError(
            f"images are {np.shape(images)}; give (B, H, W, C), a single one as image[None]"
        )
    logits: Any = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Classification(Named):
    """Which of the classes does an image show? See `Task` for the methods.

    Attributes:
        config: the whole config; `data` says how images are prepared.
        class_names: in the order of the model's outputs.

    A partial result is `sums`, those of `metrics.hits.hit_sums`, and `examples`, a row for each:
    `index` in the set (-1 of what filled a batch up), `label`, `guess` and its `probability`.
    """

    @classmethod
    def from_weights(
        cls, source: str | Path, name: str | None, preprocessing: Preprocessing,
        config: Config | None = None, **options: Any,
    ) -> tuple["Classification", nn.Module, dict[str, Any]]:  # fmt: skip
        model, variables = load_pretrained(source, name, **options)
        names = names_of_weights(source, preprocessing, model.head.num_classes)
        return cls(prepared_config(preprocessing, config), names), model, variables

    def describe(self) -> str:
        return f"{self.num_classes} classes"

    def score(self) -> Score:
        return Score("top1", "points")

    def build(self, name: str, **options: Any) -> nn.Module:
        return create_model(name, num_classes=self.num_classes, **options)

    def load(
        self, source: str | Path, name: str | None = None, *, reset_head: bool = False,
        **options: Any,
    ) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
        if reset_head:
            return load_pretrained(
                source, name, reset_head=True, num_classes=self.num_classes, **options
            )
        model, variables = load_pretrained(source, name, **options)
        if model.head.num_classes != self.num_classes:
            raise ValueError(
                f"the data have {self.num_classes} classes and {source} has "
                f"{model.head.num_classes}; evaluate weights that were trained on these classes, "
                "or train a new last layer with --config.model.reset_head=True"
            )
        return model, variables

    def aligned(self, source: LabelledImages) -> Renumbered:
        return Renumbered(source, self.class_names, self.are_named)

    def training_view(self) -> TrainingView:
        return TrainingView(self.config)

    def evaluation_view(self) -> EvaluationView:
        return EvaluationView(Preprocessing.of(self.config.data))

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Normalises; adds `target` (B, num_classes) in training, else `right` and `competing`."""
        images = normalise(batch["image"], self.config.data.mean, self.config.data.std)
        if key is None:
            return {**self._answers(batch), **batch, "image": images}
        targets = soft_targets(batch["label"], self.num_classes, self.config.loss.label_smoothing)
        images, targets = augment_batch(
            key, images, targets, batch["position"], self.config.augment
        )
        return {"image": images, "target": targets}

    def _answers(self, batch: Batch) -> Batch:
        """One right class among all, where a batch has labels."""
        if "label" not in batch:
            return {}
        right = jax.nn.one_hot(batch["label"], self.num_classes, dtype=bool)
        return {"right": right, "competing": jnp.ones_like(right)}

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """Mean cross-entropy against `target`."""
        logits, updated = model.apply(
            {"params": params, **collections},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(collections),
        )
        losses = optax.softmax_cross_entropy(logits, batch["target"])  # (B,)
        sums = {"loss": losses.sum(), "count": jnp.asarray(losses.size, losses.dtype)}
        return losses.mean(), (dict(updated), sums)

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Partial:
        logits: Any = model.apply(variables, batch["image"], train=False)
        right, competing, mask = batch["right"], batch["competing"], batch["mask"]
        among = jnp.where(competing, logits, -jnp.inf)
        return {
            "sums": hit_sums(logits, right, competing, mask),
            "examples": {
                "index": jnp.where(mask, batch["index"], -1),
                "label": jnp.argmax(right, axis=-1),
                "guess": jnp.argmax(among, axis=-1),
                "probability": jax.nn.softmax(among, axis=-1).max(axis=-1),
            },
        }

    def merge(self, partials: Sequence[Partial]) -> Partial:
        return {
            "sums": add_up([partial["sums"] for partial in partials]),
            "examples": concatenate([partial["examples"] for partial in partials]),
        }

    def metrics(self, partial: Partial) -> dict[str, float]:
        """Mean loss in nats; top-1 and top-5 in percent."""
        sums = partial["sums"]
        scale = {"loss": 1.0, "top1": 100.0, "top5": 100.0}
        return {name: float(factor * sums[name] / sums["count"]) for name, factor in scale.items()}

    def view_image(self, image: Any) -> dict[str, np.ndarray]:
        return {"image": self.evaluation_view().pixels(image)}

    def images_at_once(self) -> int:
        return 32

    def predict(
        self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
    ) -> Float[Array, "B num_classes"]:
        """Class probabilities."""
        return predict(model, variables, batch["image"])

    def findings(
        self, output: Float[np.ndarray, "num_classes"], top: int
    ) -> tuple[dict[str, Any], ...]:
        """The likeliest classes; of equal ones the lower first."""
        order = np.argsort(-output, kind="stable")[:top]
        return tuple({"name": self.class_names[i], "probability": float(output[i])} for i in order)

    def draw_batch(self, batch: Batch, path: Path) -> None:
        """Draws each image under its class, or the two that were mixed with their shares."""
        smoothing = self.config.loss.label_smoothing / self.num_classes
        titles = []
        for target in np.asarray(batch["target"]):
            likely = np.argsort(-target, kind="stable")[:2]
            names = [f"{self.class_names[i]} {target[i]:.2f}" for i in likely]
            mixed = target[likely[1]] > smoothing + 1e-3
            titles.append("\n".join(names if mixed else names[:1]))
        draw_image_grid(self.pixels(batch["image"]), titles, path)

    def mistakes(self, partial: Partial) -> list[tuple[int, int, int, float]]:
        """The wrong examples, the surest mistake first: index, label, guess, probability."""
        rows = _counted(partial)
        wrong = np.flatnonzero(rows["guess"] != rows["label"])
        wrong = wrong[np.argsort(-rows["probability"][wrong], kind="stable")]
        names = ("index", "label", "guess", "probability")
        return list(zip(*(rows[name][wrong].tolist() for name in names), strict=True))

    @classmethod
    def evaluation_files(cls) -> tuple[str, ...]:
        return _FIGURES

    def draw_evaluation(self, partial: Partial, source: Source, folder: Path) -> list[Path]:
        """Writes confusion_matrix.png, per_class.csv and, where there are any, mistakes.png.

        Where there are none, an older mistakes.png is removed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names, rows = self.class_names, _counted(partial)
        matrix = confusion_matrix(rows["label"], rows["guess"], self.num_classes)
        matrix_file, table, pictures = (folder / name for name in _FIGURES)
        draw_confusion_matrix(matrix, names, matrix_file)
        write_per_class_csv(matrix, names, table)
        images = []
        titles = []
        view = self.evaluation_view()
        mistakes = itertools.islice(self.mistakes(partial), _MOST_MISTAKES)
        for index, label, guess, probability in mistakes:
            images.append(view.pixels(source[index]["image"]))
            titles.append(f"is {names[label]}\nsaid {names[guess]} {100 * probability:.0f} %")
        if not images:
            pictures.unlink(missing_ok=True)
            return [matrix_file, table]
        draw_image_grid(np.stack(images), titles, pictures, highlights=[True] * len(images))
        return [matrix_file, table, pictures]

    def draw_predictions(self, predictions: Sequence[Prediction], path: str | Path) -> None:
        """Draws images with their likeliest class and its probability."""
        titles = []
        for prediction in predictions:
            best = prediction.findings[0]
            titles.append(
                f"{shown(prediction.path.name)}\n{best['name']} {100 * best['probability']:.1f} %"
            )
        draw_image_grid(np.stack([prediction.image for prediction in predictions]), titles, path)


def _counted(partial: Partial) -> dict[str, np.ndarray]:
    """The rows of the examples that count, in the order of the set."""
    rows = partial["examples"]
    order = np.argsort(rows["index"], kind="stable")
    order = order[rows["index"][order] >= 0]
    return {name: column[order] for name, column in rows.items()}
