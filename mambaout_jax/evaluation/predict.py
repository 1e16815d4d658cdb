# SPDX-License-Identifier: Apache-2.0
"""Predictions of any weights on image files and folders.

A source of weights is what `weights.load.load_pretrained` takes: a working directory, a weight
file, a key of the catalog, a hub repository.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mambaout_jax.config_file import load_config
from mambaout_jax.data.sets.sources import IMAGE_SUFFIXES, read_image
from mambaout_jax.data.views.crops import EvaluationView
from mambaout_jax.paths import local_path
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.tasks import find_task
from mambaout_jax.tasks.task import Prediction, Task
from mambaout_jax.weights.load import describe_source


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with its weights, its task and the preparation of its images.

    Attributes:
        run: prepared images to the task's outputs, jitted.
        channels: image channels.
    """

    task: Task
    run: Callable[[jax.Array], Any]
    channels: int
    preprocessing: Preprocessing

    def __call__(self, images: UInt8[np.ndarray, "B H W C"]) -> Any:
        """The task's outputs for prepared images, in numpy; class probabilities, for example."""
        return jax.device_get(self.run(jnp.asarray(images)))

    def view(self, path: Path) -> UInt8[np.ndarray, "H W C"]:
        """One image file, prepared."""
        image: Any = read_image(path, self.channels)
        return self.prepare(image)

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
        """What the model sees of an image."""
        return EvaluationView(self.preprocessing).pixels(image)


def make_predictor(
    source: str | Path,
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> Predictor:
    """Loads weights for prediction.

    Args:
        source, name, options: see `load_pretrained`.
        preprocessing: how images are prepared, None for what `describe_source` tells of the source.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_pretrained`.
    """
    preprocessing = preprocessing or describe_source(source, name)
    run_config = Path(source).expanduser() / "config.json"
    kind = load_config(run_config).task if run_config.is_file() else "classification"
    options = {"image_size": preprocessing.image_size, **options}
    task, model, variables = find_task(kind).from_weights(source, name, preprocessing, **options)

    @partial(jax.jit, compiler_options=to_run_fast(jax.default_backend()))
    def run(variables, images):
        return task.predict(model, variables, task.prepare({"image": images}, None))

    variables = jax.device_put(variables)  # once, and not at every call
    return Predictor(task, partial(run, variables), model.backbone.in_chans, preprocessing)


def predict_files(
    predictor: Predictor, paths: Sequence[str | Path], top: int = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Predicts image files, and all images below folders, in sorted order.

    Args:
        top: findings to tell of each image.
        batch_size: images at once; the last batch is filled up, so that one shape is compiled.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no images.
        ValueError: a file cannot be read as an image.
    """
    files = [file for path in paths for file in _images(local_path(path))]
    batch_size = min(batch_size, len(files))
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        views = [predictor.view(file) for file in chunk]
        padded = views + [views[-1]] * (batch_size - len(views))
        outputs = predictor(np.stack(padded))
        for row, (file, view) in enumerate(zip(chunk, views, strict=True)):
            output = jax.tree.map(lambda array, row=row: array[row], outputs)
            yield Prediction(file, view, predictor.task.findings(output, top))


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
