# SPDX-License-Identifier: Apache-2.0
"""What training, evaluation, prediction and previews ask of a task.

A task knows what an example is, what the model's outputs mean and what is measured. Everything
around it (order of the data, devices, updates, checkpoints, the loop over a set) knows none of
that: examples and batches are dicts of arrays, sums and partial results are pytrees.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.config import Config, default_config
from mambaout_jax.data.loader import EvaluationView, TrainingView
from mambaout_jax.data.sets.image_files import Decoded
from mambaout_jax.data.sets.sources import Source
from mambaout_jax.models import ParameterRules, parameter_rules
from mambaout_jax.preprocessing import Preprocessing

Batch = Mapping[str, Array]
Sums = dict[str, Float[Array, ""]]
Partial = Any  # a pytree that the task itself makes, merges and reads


class Prediction(NamedTuple):
    """What was found in one image file.

    Attributes:
        path: the file.
        image: what the model saw, (H, W, C).
        findings: likeliest first; each has `name` and `probability` in [0, 1], and what else the
            task tells, as JSON could hold it.
    """

    path: Path
    image: UInt8[np.ndarray, "H W C"]
    findings: tuple[dict[str, Any], ...]


class Score(NamedTuple):
    """The metric by which the models of a task are compared.

    Attributes:
        name: a key of `Objective.metrics`.
        unit: of differences, such as "points"; "" where they have none.
        higher_is_better: False for losses and errors.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True


@runtime_checkable
class Objective(Protocol):
    """What the training step and the loop over a set ask of a task."""

    def evaluation_view(self) -> EvaluationView:
        """How one example becomes arrays for evaluation."""
        ...

    def groups(self, source: Source, train: bool = False) -> Sequence[int] | None:
        """A number for each example; those of one batch share it, and their shapes.

        None where all examples have the same shapes.

        Args:
            train: whether batches are for training or for evaluation.
        """
        return None

    def measured_on(self, source: Source) -> "Objective":
        """The task with what its metrics need to know of a set; itself where that is nothing."""
        return self

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Makes of a loaded batch what `loss` or `evaluate` reads; runs on the device.

        Args:
            batch: arrays of the view; in training with `position` (B,), the place of each example
                in the global batch, by which random draws are keyed; in evaluation with `index`
                (B,), its place in the set, and `mask` (B,), False where it only fills the batch.
            key: random key of this update; None in evaluation.
        """
        ...

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """Mean loss of a batch in training mode.

        Args:
            params: what the loss is differentiated with respect to.
            collections: the model's other variables, such as batch statistics.
            batch: prepared.
            key: random key of the stream "dropout".

        Returns:
            The loss, and the updated collections with sums over the batch: `count` of examples,
            `loss`, and any others; reports are these sums divided by `count`.
        """
        ...

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Partial:
        """The partial result of a prepared batch, in evaluation mode; traced.

        Examples whose `mask` is False must not count.
        """
        ...

    def merge(self, partials: Sequence[Partial]) -> Partial:
        """One partial result of several, in numpy.

        The loop over a set merges as it goes, and merges what it has merged.

        Args:
            partials: at least one; numpy arrays, floats as float64, signed integers as int64.
        """
        ...

    def metrics(self, partial: Partial) -> dict[str, float]:
        """What a partial result over all examples of a set amounts to; see `measured_on`."""
        ...


@runtime_checkable
class Task(Objective, Protocol):
    """One kind of question asked of images, with all that runs and commands ask of it."""

    @classmethod
    def from_config(cls, config: Config, source: Any) -> "Task":
        """The task of a run whose examples are those of `source`, of the kind that it needs."""
        ...

    @classmethod
    def from_weights(
        cls,
        source: str | Path,
        name: str | None,
        preprocessing: Preprocessing,
        config: Config | None = None,
        **options: Any,
    ) -> tuple["Task", nn.Module, dict[str, Any]]:
        """The task that weights were trained for, to predict with: task, model, variables.

        Args:
            source, name, options: see `weights.load.load_pretrained`.
            preprocessing: how images are prepared, and what the classes are called.
            config: all other settings; None: the defaults.
        """
        ...

    def describe(self) -> str:
        """A few words for the dry run, such as "10 classes"."""
        ...

    def score(self) -> Score:
        """The metric by which models are compared."""
        ...

    def record(self) -> dict[str, Any]:
        """What a run's folder keeps of the meaning of its outputs: JSON values by file name."""
        ...

    def build(self, name: str, **options: Any) -> nn.Module:
        """The model: the backbone `name` with what this task puts on top of it.

        It has `init(key, images)`, takes images (B, H, W, C) and has a field `backbone`.
        """
        ...

    def load(
        self, source: str | Path, name: str | None = None, *, reset_head: bool = False,
        **options: Any,
    ) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
        """Weights in a model for this task: the model and its variables, nested numpy arrays.

        Raises:
            FileNotFoundError, RuntimeError: as `weights.load.load_pretrained`.
            ValueError: so, too; or the weights are for other outputs.
        """
        ...

    def aligned(self, source: Any) -> Any:
        """The set with targets that mean the outputs of this task, which weights have brought.

        Raises:
            ValueError: the set asks for something that the weights do not tell.
        """
        return source

    def parameter_rules(self, name: str) -> ParameterRules:
        """Which parameters of the built model decay, and the layer of each; the family's rules."""
        return parameter_rules(name)

    def training_view(self) -> TrainingView:
        """How one example becomes arrays for training; those of one group get the same shapes."""
        ...

    def view_image(self, image: Decoded) -> dict[str, np.ndarray]:
        """What a model sees of an image, as arrays of a batch to predict on.

        `image`, uint8 (H, W, C); where it is in the upper left corner of that, `image_shape`,
        int32 (2,), its height and width.
        """
        ...

    def images_at_once(self) -> int:
        """How many images are predicted on at a time, by default."""
        return 1

    def predict(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Any:
        """Outputs for a prepared batch of images, a pytree of arrays (B, ...); traced."""
        ...

    def findings(self, output: Any, top: int) -> tuple[dict[str, Any], ...]:
        """The `top` likeliest findings in the outputs for one image; see `Prediction`."""
        ...

    def draw_batch(self, batch: Batch, path: Path) -> None:
        """Draws a prepared training batch."""
        ...

    @classmethod
    def evaluation_files(cls) -> tuple[str, ...]:
        """Names of all files that `draw_evaluation` may write."""
        return ()

    def draw_evaluation(self, partial: Partial, source: Source, folder: Path) -> list[Path]:
        """Writes figures and tables of an evaluation over `source`; returns the files."""
        ...

    def draw_predictions(self, predictions: Sequence[Prediction], path: str | Path) -> None:
        """Draws images with what was found in them."""
        ...


def prepared_config(preprocessing: Preprocessing, config: Config | None = None) -> Config:
    """A copy of the config, or of the defaults, whose images are prepared so."""
    prepared = default_config() if config is None else copy.deepcopy(config)
    preprocessing.write_to(prepared.data)
    return prepared


def add_up(partials: Sequence[Partial]) -> Partial:
    """The sum of partial results that are trees of sums."""
    return jax.tree.map(lambda *leaves: sum(leaves), *partials)


def concatenate(partials: Sequence[Partial]) -> Partial:
    """Partial results whose leaves have a row per example, one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *partials)
