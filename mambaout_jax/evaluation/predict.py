# SPDX-License-Identifier: Apache-2.0
"""Predictions of any weights on image files and folders.

A source of weights is what `weights.load.load_pretrained` takes: a working directory, a weight
file, a key of the catalog, a hub repository.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from mambaout_jax.config_file import load_config
from mambaout_jax.data.sets.image_files import UnreadableImageError, read_image
from mambaout_jax.data.sets.listing import IMAGE_SUFFIXES, images_below
from mambaout_jax.evaluation.evaluator import check_finite
from mambaout_jax.paths import local_path
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.tasks import find_task
from mambaout_jax.tasks.task import Prediction, Task
from mambaout_jax.weights.load import describe_source
from mambaout_jax.weights.locate import locate

_View = dict[str, np.ndarray]  # see `Task.view_image`


class Opened(NamedTuple):
    """Weights in a model, and what they are for.

    Attributes:
        kind: the task's key in `tasks.TASKS`.
        name: of the model.
        variables: nested dict of numpy arrays.
    """

    kind: str
    name: str
    task: Task
    model: nn.Module
    variables: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with its weights, its task and the preparation of its images.

    Attributes:
        run: images (B, H, W, C), and where they do not fill that their `image_shapes` (B, 2), to
            the task's outputs, jitted.
        channels: image channels.
        source: where the weights are from; messages name it.
        kind: the task's key in `tasks.TASKS`.
    """

    task: Task
    run: Callable[..., Any]
    channels: int
    preprocessing: Preprocessing
    source: str
    kind: str = "classification"

    def __call__(
        self,
        images: UInt8[np.ndarray, "B H W C"],
        image_shapes: Int32[np.ndarray, "B 2"] | None = None,
    ) -> Any:
        """The task's outputs for prepared images, in numpy; class probabilities, for example.

        Args:
            images: in the form of `view`.
            image_shapes: height and width of each in its upper left corner; None: they are whole.

        Raises:
            ValueError: the images have another shape or type.
            FloatingPointError: an output is NaN or infinite; names the weights.
        """
        if images.ndim != 4 or images.shape[-1] != self.channels or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; give uint8 (B, H, W, {self.channels}), "
                "a single one as image[None]"
            )
        arrays = (images,) if image_shapes is None else (images, image_shapes)
        outputs = jax.device_get(self.run(*map(jnp.asarray, arrays)))
        check_finite(outputs, self.source)
        return outputs

    def view(self, path: Path) -> UInt8[np.ndarray, "H W C"]:
        """One image file, prepared."""
        return self.prepare(self.read(path))

    def read(self, path: Path) -> Image.Image:
        """One image file."""
        image: Any = read_image(path, self.channels)
        return image

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
        """What a model that sees whole images sees of one."""
        return self.task.view_image(image)["image"]


def make_predictor(
    source: str | Path,
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
    *,
    kind: str | None = None,
    **options: Any,
) -> Predictor:
    """Loads weights for prediction.

    Args:
        source, name, options: see `load_pretrained`.
        preprocessing: how images are prepared, None for what `describe_source` tells of the source.
        kind: a key of `tasks.TASKS`; None: that of the run, and for other weights classification.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_pretrained`.
    """
    preprocessing = preprocessing or describe_source(source, name)
    opened = open_weights(source, name, preprocessing, kind=kind, **options)
    task, model = opened.task, opened.model

    @partial(jax.jit, compiler_options=to_run_fast(jax.default_backend()))
    def run(variables, images, image_shapes=None):
        shapes = {} if image_shapes is None else {"image_shape": image_shapes}
        batch = task.prepare({"image": images, **shapes}, None)
        return task.predict(model, variables, batch)

    variables = jax.device_put(opened.variables)  # once, and not at every call
    of_weights, channels = partial(run, variables), model.backbone.in_chans
    return Predictor(task, of_weights, channels, preprocessing, str(source), opened.kind)


def open_weights(
    source: str | Path,
    name: str | None,
    preprocessing: Preprocessing,
    *,
    kind: str | None = None,
    **options: Any,
) -> Opened:
    """Loads weights with the task that they were trained for; arguments as `make_predictor`."""
    run_config = Path(source).expanduser() / "config.json"
    config = load_config(run_config) if run_config.is_file() else None
    chosen = kind or (config.task if config else "classification")
    options = {"image_size": preprocessing.image_size, **options}
    task, model, variables = find_task(chosen).from_weights(
        source, name, preprocessing, config, **options
    )
    return Opened(chosen, locate(source, name).name, task, model, variables)


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    top: int = 5,
    batch_size: int | None = None,
    skip: Callable[[UnreadableImageError], None] | None = None,
) -> Iterator[Prediction]:
    """Predicts image files, and all images below folders (`data.sets.listing`), in sorted order.

    Args:
        top: findings to tell of each image.
        batch_size: images at once, None: as the task has it; batches are filled up, so that one
            program is compiled for each shape of image.
        skip: told of each file that cannot be read, which is then left out; None: it is an error.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no images.
        ValueError: a number is below 1, a path is neither a file nor a folder, or a link leads
            out of a folder; `UnreadableImageError` where a file cannot be read as an image.
        FloatingPointError: as a `Predictor`.
    """
    for name, value in {"top": top, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is out of range; it must be at least 1")
    files = [file for path in paths for file in _images(local_path(path))]
    if not files:
        return
    batch_size = min(batch_size or predictor.task.images_at_once(), len(files))
    for start in range(0, len(files), batch_size):
        chunk = list(_views(predictor, files[start : start + batch_size], skip))
        for shape in dict.fromkeys(view["image"].shape for _, view in chunk):
            rows = [row for row in chunk if row[1]["image"].shape == shape]
            yield from _predict_batch(predictor, rows, top, batch_size)


def _predict_batch(
    predictor: Predictor, rows: list[tuple[Path, _View]], top: int, batch_size: int
) -> Iterator[Prediction]:
    """Predictions of images of one shape, filled up to `batch_size`."""
    padded = [view for _, view in rows] + [rows[-1][1]] * (batch_size - len(rows))
    names = ("image", "image_shape") if "image_shape" in padded[0] else ("image",)
    outputs = predictor(*(np.stack([view[name] for view in padded]) for name in names))
    for row, (file, view) in enumerate(rows):
        output = jax.tree.map(lambda array, row=row: array[row], outputs)
        height, width = view.get("image_shape", view["image"].shape[:2])
        seen = view["image"][:height, :width]
        yield Prediction(file, seen, predictor.task.findings(output, top))


def _views(
    predictor: Predictor, files: Sequence[Path], skip: Callable | None
) -> Iterator[tuple[Path, _View]]:
    """The readable files with what the model sees of them."""
    for file in files:
        try:
            yield file, predictor.task.view_image(predictor.read(file))
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
