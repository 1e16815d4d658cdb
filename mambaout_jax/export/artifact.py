# SPDX-License-Identifier: Apache-2.0
"""Writes a model with its weights as a program, and beside it what goes in and what comes out.

The program is StableHLO in the container of `jax.export`, which runs it with JAX alone:

    program = jax.export.deserialize(Path("model.jaxexport").read_bytes())
    outputs = program.call(images)

It takes pixels as they are, uint8, and normalises them itself. It is made of the plain
implementations, so that every platform runs it. `jax.export` promises that JAX of the next six
months reads it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export
from PIL import Image

from mambaout_jax.evaluation.predict import Opened, open_weights
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.files import replacing, write_text
from mambaout_jax.weights.load import describe_source

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SUFFIX = ".jaxexport"

_BATCH = "b"  # the name of a number of images that is left open
_PHOTO = (640, 480)  # width and height: of the usual proportions


class Exported(NamedTuple):
    """A program and what is told of it.

    Attributes:
        program: as `jax.export` makes it.
        description: what the JSON file holds.
    """

    program: jax_export.Exported
    description: dict[str, Any]

    def save(self, path: Path) -> list[Path]:
        """Writes the program to `path` and the description beside it, .json; returns both."""
        told = path.with_suffix(".json")
        with replacing(path) as part:
            part.write_bytes(self.program.serialize())
        write_text(told, json.dumps(self.description, indent=2) + "\n")
        return [path, told]


def export_weights(
    source: str | Path,
    name: str | None = None,
    *,
    kind: str | None = None,
    image_size: int | None = None,
    input_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Exported:
    """Exports what `predict` computes of images that are resized already.

    Args:
        source, name: see `weights.load.load_pretrained`.
        kind: a key of `tasks.TASKS`; None: that of the run, and for other weights classification.
        image_size: pixels, see `data.image_size` in the config; None: the source's own.
        input_size: height and width of the program's images; None: those of a photograph of 640 x
            480 pixels as the task prepares it, which for classification is a square and for
            detection the canvas of all landscape images.
        batch_size: images at a time; None: any number.
        platforms: those of `PLATFORMS` that are to run the program.

    Returns:
        The program. It takes `image`, uint8 (B, H, W, C), and for detection `image_shape`, int32
        (B, 2), height and width of what each canvas holds; and returns what `Task.predict` does.

    Raises:
        FileNotFoundError, RuntimeError: as `load_pretrained`.
        ValueError: so, too; or a platform is not known, the model does not take the size, or not
            any number of images.
    """
    wrong = [platform for platform in platforms if platform not in PLATFORMS]
    if wrong or not platforms:
        raise ValueError(f"platforms={tuple(platforms)} is not allowed; give some of {PLATFORMS}")
    preprocessing = describe_source(source, name, image_size)
    opened = open_weights(source, name, preprocessing, kind=kind, plain=True)
    arrays = _inputs(opened, input_size, batch_size)

    @jax.jit
    def predict(*inputs):
        batch = dict(zip(arrays, inputs, strict=True))
        return opened.task.predict(opened.model, opened.variables, opened.task.prepare(batch, None))

    try:
        program = jax_export.export(predict, platforms=tuple(platforms))(*arrays.values())
    except (TypeError, ValueError) as error:
        if batch_size is not None:
            raise
        raise ValueError(
            f"{source} cannot be exported for any number of images: {_first_line(error)}; give a "
            "number, --batch-size=1"
        ) from error
    return Exported(program, _describe(str(source), opened, preprocessing, arrays, program))


def _inputs(
    opened: Opened, input_size: tuple[int, int] | None, batch_size: int | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The program's arguments by name."""
    mode = "RGB" if opened.model.backbone.in_chans == 3 else "L"
    view = opened.task.view_image(Image.new(mode, _PHOTO))
    if input_size is not None:
        view["image"] = np.zeros((*input_size, view["image"].shape[-1]), np.uint8)
    count = jax_export.symbolic_shape(_BATCH)[0] if batch_size is None else batch_size
    return {
        key: jax.ShapeDtypeStruct((count, *np.shape(value)), np.asarray(value).dtype)
        for key, value in view.items()
    }


def _describe(
    source: str,
    opened: Opened,
    preprocessing: Preprocessing,
    arrays: dict[str, jax.ShapeDtypeStruct],
    program: jax_export.Exported,
) -> dict[str, Any]:
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    named, _ = jax.tree.flatten_with_path(outputs)
    config, long_side = opened.task.config, {}
    if opened.kind in ("detection", "segmentation"):
        long_side = {"long_side": config[opened.kind].long_side}
    prepared = {
        "channels": "RGB" if config.data.channels == 3 else "greyscale",
        "image_size": preprocessing.image_size,
        **long_side,
        "crop_fraction": preprocessing.crop_fraction,
        "crop_mode": preprocessing.crop_mode,
        "interpolation": preprocessing.interpolation,
    }
    if long_side:  # the shorter and the longer side; bilinear, without antialiasing
        prepared = {key: prepared[key] for key in ("channels", "image_size", "long_side")}
        prepared["interpolation"] = "bilinear"
    return {
        "format": "jax.export",
        "jax": jax.__version__,
        "platforms": list(program.platforms),
        "weights": source,
        "model": opened.name,
        "task": opened.kind,
        "inputs": {key: _array(leaf) for key, leaf in arrays.items()},
        "outputs": {
            jax.tree_util.keystr(path, simple=True, separator=".") or "output": _array(leaf)
            for path, leaf in named
        },
        "preprocessing": {
            **prepared,
            "normalised_inside": {"mean": preprocessing.mean, "std": preprocessing.std},
        },
        "class_names": list(opened.task.class_names),
    }


def _array(leaf: Any) -> dict[str, Any]:
    sides = [side if isinstance(side, int) else str(side) for side in leaf.shape]
    return {"dtype": str(leaf.dtype), "shape": sides}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
