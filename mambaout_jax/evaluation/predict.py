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
from mambaout_jax.data.sets.image_files import UnreadableImageError, read_image
from mambaout_jax.data.sets.listing import IMAGE_SUFFIXES, images_below
from mambaout_jax.data.views.crops import EvaluationView
from mambaout_jax.evaluation.evaluator import check_finite
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
        source: where the weights are from; messages name it.
    """

    task: Task
    run: Callable[[jax.Array], Any]
    channels: int
    preprocessing: Preprocessing
    source: str

    def __call__(self, images: UInt8[np.ndarray, "B H W C"]) -> Any:
        """The task's outputs for prepared images, in numpy; class probabilities, for example.

        Raises:
            ValueError: the images have another shape or type.
            FloatingPointError: an output is NaN or infinite; names the weights.
        """
        if images.ndim != 4 or images.shape[-1] != self.channels or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; give uint8 (B, H, W, {self.channels}), "
                "a single one as image[None]"
            )
        outputs = jax.device_get(self.run(jnp.asarray(images)))
        check_finite(outputs, self.source)
        return outputs

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
    of_weights = partial(run, variables)
    return Predictor(task, of_weights, model.backbone.in_chans, preprocessing, str(source))


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    top: int = 5,
    batch_size: int = 32,
    skip: Callable[[UnreadableImageError], None] | None = None,
) -> Iterator[Prediction]:
    """Predicts image files, and all images below folders (`data.sets.listing`), in sorted order.

    Args:
        top: findings to tell of each image.
        batch_size: images at once; the last batch is filled up, so that one shape is compiled.
        skip: told of each file that cannot be read, which is then left out; None: it is an error.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no images.
        ValueError: a number is below 1, a path is neither a file nor a folder, or a link leads
            out of a folder; `UnreadableImageError` where a file cannot be read as an image.
        FloatingPointError: as a `Predictor`.
    """
    for name, value in {"top": top, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range; it must be at least 1")
    files = [file for path in paths for file in _images(local_path(path))]
    batch_size = min(batch_size, len(files)) or 1
    for start in range(0, len(files), batch_size):
        chunk = list(_views(predictor, files[start : start + batch_size], skip))
        if not chunk:
            continue
        padded = chunk + [chunk[-1]] * (batch_size - len(chunk))
        outputs = predictor(np.stack([view for _, view in padded]))
        for row, (file, view) in enumerate(chunk):
            output = jax.tree.map(lambda array, row=row: array[row], outputs)
            yield Prediction(file, view, predictor.task.findings(output, top))


def _views(
    predictor: Predictor, files: Sequence[Path], skip: Callable | None
) -> Iterator[tuple[Path, UInt8[np.ndarray, "H W C"]]]:
    """The readable files with what the model sees of them."""
    for file in files:
        try:
            yield file, predictor.view(file)
        except UnreadableImageError as error:
            if skip is None:
                raise
            skip(error)


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"there is no image or folder {path}")
    if not path.is_dir():
        raise ValueError(f"{path} is neither an image file nor a folder; give one of them")
    found = [path / name for name in images_below(path)]
    if not found:
        raise FileNotFoundError(
            f"{path} holds no images; those are files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return found
