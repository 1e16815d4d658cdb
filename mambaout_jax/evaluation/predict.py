# SPDX-License-Identifier: Apache-2.0
"""Predictions of any weights on any images: files, folders, labelled folders.

A source of weights is what `weights.load.load_pretrained` takes: a working directory, a weight
file, a key of the catalog, a hub repository.
"""

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mambaout_jax.analysis.figures import draw_confusion_matrix, draw_image_grid
from mambaout_jax.config import Config, default_config
from mambaout_jax.config_file import load_config
from mambaout_jax.data.loader import evaluation_batches
from mambaout_jax.data.sets.sources import IMAGE_SUFFIXES, Source, read_image
from mambaout_jax.data.views.crops import evaluation_view
from mambaout_jax.metrics.confusion import confusion_matrix, write_per_class_csv
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.tasks.classification import predict
from mambaout_jax.train.augment import normalise
from mambaout_jax.weights.load import describe_source, load_pretrained

_MOST_MISTAKES = 64  # in one picture


class Prediction(NamedTuple):
    """The likeliest classes of one image.

    Attributes:
        path: of the image.
        classes: names, likeliest first.
        probabilities: of these, in [0, 1].
        image: what the model saw, uint8 (H, W, C).
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    image: UInt8[np.ndarray, "H W C"]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with its weights, the preparation of its images and the names of its classes.

    Attributes:
        run: uint8 images (B, H, W, C) to class probabilities (B, K), jitted.
        channels: of the images.
    """

    run: Callable[[jax.Array], jax.Array]
    channels: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    def probabilities(self, images: UInt8[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B K"]:
        """Class probabilities of prepared images."""
        return np.asarray(self.run(jnp.asarray(images)))

    def view(self, path: Path) -> UInt8[np.ndarray, "H W C"]:
        """One image file, prepared."""
        image: Any = read_image(path, self.channels)
        return self.prepare(image)

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
        """What the model sees of an image."""
        how = self.preprocessing
        return evaluation_view(
            image,
            how.image_size,
            crop_fraction=how.crop_fraction,
            crop_mode=how.crop_mode,
            interpolation=how.interpolation,
        )


def make_predictor(
    source: str | Path,
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> Predictor:
    """Loads weights for prediction.

    Args:
        source, name, options: of `load_pretrained`.
        preprocessing: of images, None for what `describe_source` tells of the source.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_pretrained`.
    """
    preprocessing = preprocessing or describe_source(source, name)
    options = {"image_size": preprocessing.image_size, **options}
    model, variables = load_pretrained(source, name, **options)
    classes = model.head.num_classes
    names = preprocessing.class_names
    if names is None or len(names) != classes:
        names = tuple(f"class {i}" for i in range(classes))

    @partial(jax.jit, compiler_options=to_run_fast(jax.default_backend()))
    def run(variables, images):
        return predict(model, variables, normalise(images, preprocessing.mean, preprocessing.std))

    variables = jax.device_put(variables)  # once, and not at every call
    return Predictor(partial(run, variables), model.in_chans, preprocessing, names)


def predict_files(
    predictor: Predictor, paths: Sequence[str | Path], top: int = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Predicts image files, and all images below folders, in sorted order.

    Args:
        top: classes to name.
        batch_size: images at once; the last batch is filled up, so that one shape is compiled.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no images.
        ValueError: a file cannot be read as an image.
    """
    files = [file for path in paths for file in _images(Path(path))]
    batch_size = min(batch_size, len(files))
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        views = [predictor.view(file) for file in chunk]
        padded = views + [views[-1]] * (batch_size - len(views))
        rows = predictor.probabilities(np.stack(padded))
        for file, view, row in zip(chunk, views, rows, strict=False):  # the rest is filling
            order = np.argsort(-row, kind="stable")[:top]
            names = tuple(predictor.class_names[i] for i in order)
            yield Prediction(file, names, tuple(float(row[i]) for i in order), view)


def draw_predictions(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Draws images with their likeliest class and its probability."""
    draw_image_grid(
        np.stack([prediction.image for prediction in predictions]),
        [f"{p.path.name}\n{p.classes[0]} {100 * p.probabilities[0]:.1f} %" for p in predictions],
        path,
    )


class Assessment(NamedTuple):
    """What a model makes of labelled images.

    Attributes:
        metrics: `top1` and `top5` in percent, `count` of the examples.
        matrix: examples by label (row) and predicted class (column).
        class_names: of rows and columns.
        mistakes: indices into the data of wrong examples, the surest mistake first.
        predicted: class and its probability for each of these.
    """

    metrics: dict[str, float]
    matrix: Int[np.ndarray, "K K"]
    class_names: tuple[str, ...]
    mistakes: list[int]
    predicted: list[tuple[int, float]]


def assessment_config(
    source: str | Path, folder: str | Path | None = None, config: Config | None = None
) -> Config:
    """The config that opens and prepares the data on which weights are assessed.

    Args:
        source: of weights.
        folder: of class sub-folders, or with a `val` of such; None for the data of the config.
        config: instead of that of the run which `source` is.

    Raises:
        ValueError: nothing says what the data are.
    """
    config_path = Path(source) / "config.json"
    chosen: Config = copy.deepcopy(config)
    if chosen is None and config_path.is_file():
        chosen = load_config(config_path)
    elif chosen is None and folder is None:
        raise ValueError(f"{source} is no training run; give the labelled images with --data DIR")
    elif chosen is None:
        chosen, how = default_config(), describe_source(source)
        chosen.data.image_size, chosen.data.crop_fraction = how.image_size, how.crop_fraction
        chosen.data.crop_mode, chosen.data.interpolation = how.crop_mode, how.interpolation
        chosen.data.mean, chosen.data.std = how.mean, how.std
    if folder is not None:
        chosen.data.source, chosen.data.path = "folder", str(folder)
    return chosen


def configured_preprocessing(config: Config, source: str | Path) -> Preprocessing:
    """The preparation that a config describes, with the class names of the weights."""
    data = config.data
    return Preprocessing(
        image_size=data.image_size,
        crop_fraction=data.crop_fraction,
        crop_mode=data.crop_mode,
        interpolation=data.interpolation,
        mean=tuple(data.mean),
        std=tuple(data.std),
        class_names=describe_source(source).class_names,
    )


def assess(predictor: Predictor, config: Config, data: Source) -> Assessment:
    """Predicts all labelled examples, each once.

    Raises:
        ValueError: the data have another number of classes than the model.
    """
    classes = len(predictor.class_names)
    if data.num_classes != classes:
        raise ValueError(
            f"the data have {data.num_classes} classes and the model has {classes}; evaluate a "
            "model that was trained on these classes"
        )
    rows, labels = [], []
    with contextlib.closing(evaluation_batches(config, data)) as batches:
        for batch in batches:
            mask = batch["mask"]
            rows.append(predictor.probabilities(batch["image"])[mask])
            labels.append(batch["label"][mask])
    probabilities, truth = np.concatenate(rows), np.concatenate(labels)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    guess = order[:, 0]
    surest = probabilities[np.arange(len(guess)), guess]
    wrong = np.flatnonzero(guess != truth)
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")]
    return Assessment(
        metrics={
            "top1": 100 * float((guess == truth).mean()),
            "top5": 100 * float((order[:, :5] == truth[:, None]).any(axis=1).mean()),
            "count": len(truth),
        },
        matrix=confusion_matrix(truth, guess, classes),
        class_names=tuple(data.class_names),
        mistakes=wrong.tolist(),
        predicted=[(int(guess[i]), float(surest[i])) for i in wrong],
    )


def draw_assessment(
    assessment: Assessment, predictor: Predictor, data: Source, folder: Path
) -> list[Path]:
    """Writes confusion_matrix.png, per_class.csv and, where there are any, mistakes.png.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = assessment.class_names
    files = [folder / "confusion_matrix.png", folder / "per_class.csv"]
    draw_confusion_matrix(assessment.matrix, names, files[0])
    write_per_class_csv(assessment.matrix, names, files[1])
    if assessment.mistakes:
        images, titles = [], []
        mistakes = zip(assessment.mistakes, assessment.predicted, strict=True)
        for index, (guess, share) in itertools.islice(mistakes, _MOST_MISTAKES):
            example = data[index]
            images.append(predictor.prepare(example["image"]))
            titles.append(f"is {names[example['label']]}\nsaid {names[guess]} {100 * share:.0f} %")
        files.append(folder / "mistakes.png")
        draw_image_grid(np.stack(images), titles, files[2], highlights=[True] * len(images))
    return files


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no image or folder {path}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"{path} holds no images; files with these endings are: {sorted(IMAGE_SUFFIXES)}"
        )
    return found
