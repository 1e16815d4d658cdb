# SPDX-License-Identifier: Apache-2.0
"""`mambaout predict`: name what images show."""

import argparse
import json
import sys
from pathlib import Path

from mambaout_jax.cli.errors import positive
from mambaout_jax.runtime.files import check_destination

SUMMARY = "name what images show, or find what is where in them"

EXAMPLES = """
examples:
  mambaout predict --weights runs/folder photo.jpg
  mambaout predict --weights mambaout_tiny.in1k photos/ --grid predictions.png
  mambaout predict --weights hf_hub:timm/mambaout_femto.in1k photo.jpg --json
  mambaout predict --weights weights.safetensors --model mambaout_tiny photo.jpg
  mambaout predict --weights runs/detector street.jpg --grid objects.png

Weights are the working directory of a run (a folder, or gs://bucket/folder or s3://bucket/folder),
a weight file (.safetensors, .pth), a name from the table that `mambaout models` prints, or a
repository of the Hugging Face hub. What is predicted is the run's task. Boxes and masks count in
pixels of what the model saw, whose height and width --json tells.
"""

_CLASSES, _OBJECTS = 5, 100  # findings that are told by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--weights", metavar="SOURCE", required=True, help="see below")
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, where the weights do not tell it"
    )
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="height and width, if not those that the weights were published with; for detection "
        "and segmentation the shorter side",
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        help="what the weights are for, where they are not of a run (default: classification)",
    )
    parser.add_argument(
        "--top",
        type=positive,
        metavar="K",
        help=f"how many findings to tell (default: {_CLASSES} classes, {_OBJECTS} objects)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.add_argument(
        "--grid", type=Path, metavar="PNG", help="draw the images with their predictions"
    )
    parser.add_argument("--force", action="store_true", help="replace a PNG that is there")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Predicts and prints image by image; returns the exit code."""
    if arguments.force and not arguments.grid:
        arguments.parser.error("--force goes with --grid: nothing else is written")
    if arguments.grid:
        check_destination(arguments.grid, arguments.force)
    from mambaout_jax.weights.locate import copied_run

    with copied_run(arguments.weights) as weights:
        return _predict(arguments, weights)


def _predict(arguments: argparse.Namespace, weights: str | Path) -> int:
    from mambaout_jax.evaluation.predict import make_predictor, predict_files
    from mambaout_jax.weights.load import describe_source

    preprocessing = describe_source(weights, arguments.model, arguments.image_size)
    predictor = make_predictor(weights, arguments.model, preprocessing, kind=arguments.task)
    top = arguments.top or (_OBJECTS if predictor.kind == "detection" else _CLASSES)
    predictions, unreadable = [], []

    def skip(error: Exception) -> None:
        unreadable.append(error)
        print(f"error: {error}", file=sys.stderr)

    for prediction in predict_files(predictor, arguments.images, top, skip=skip):
        predictions.append(prediction)
        print(_as_json(prediction, predictor.kind) if arguments.json else _as_text(prediction))
    if arguments.grid and predictions:
        predictor.task.draw_predictions(predictions, arguments.grid)
    return 1 if unreadable else 0


def _as_json(prediction, kind: str) -> str:
    findings = [
        {**found, "probability": round(found["probability"], 6)} for found in prediction.findings
    ]
    seen = {} if kind == "classification" else {"size": list(prediction.image.shape[:2])}
    key = "objects" if kind == "detection" else "classes"
    return json.dumps({"path": str(prediction.path), **seen, key: findings})


def _as_text(prediction) -> str:
    from mambaout_jax.data.sets.listing import shown

    lines = [shown(str(prediction.path))]
    for found in prediction.findings:
        line = f"  {100 * found['probability']:5.1f} %  {found['name']}"
        if "box" in found:
            line += "  at " + ", ".join(f"{side:.0f}" for side in found["box"])
        if "share" in found:
            line += f"  on {100 * found['share']:.1f} % of the image"
        lines.append(line)
    return "\n".join(lines)
