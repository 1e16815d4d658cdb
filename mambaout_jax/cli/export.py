# SPDX-License-Identifier: Apache-2.0
"""`mambaout export`: a model with its weights as a program that any JAX runs."""

import argparse
import re
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument, check_output
from mambaout_jax.cli.errors import positive

SUMMARY = "write a model with its weights as a program that runs without this package"

EXAMPLES = """
examples:
  mambaout export runs/folder folder.jaxexport
  mambaout export mambaout_tiny.in1k tiny.jaxexport --platforms cpu,tpu
  mambaout export runs/detector detector.jaxexport --batch-size 1
  mambaout export runs/segmenter segmenter.jaxexport --image-size 512x2048

OUT is StableHLO in the container of jax.export, for any number of images:

  program = jax.export.deserialize(open("folder.jaxexport", "rb").read())
  outputs = program.call(images)

Beside it, OUT.json tells what goes in, uint8 pixels that are resized already, and what comes out.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `export`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="weights, as `mambaout predict --weights` takes them"
    )
    parser.add_argument("out", type=Path, metavar="OUT.jaxexport")
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, where the weights do not tell it"
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        help="what the weights are for, where they are not of a run (default: classification)",
    )
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="PIXELS|HxW",
        help="of the images, if not the size that the weights were published with: one number as "
        "`mambaout predict` takes it, or height and width of what goes in",
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="images at a time (default: any number)"
    )
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="NAMES",
        help="that are to run it, out of cpu,cuda,rocm,tpu (default: %(default)s)",
    )
    add_force_argument(parser, "the files OUT and OUT.json")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes both files and prints their names; returns the exit code."""
    from mambaout_jax.export.artifact import SUFFIX, export_weights
    from mambaout_jax.runtime.files import check_destination
    from mambaout_jax.weights.locate import copied_run

    check_output(arguments, arguments.out, SUFFIX)
    check_destination(arguments.out.with_suffix(".json"), arguments.force)
    size = arguments.image_size
    with copied_run(arguments.source) as source:
        exported = export_weights(
            source,
            arguments.model,
            kind=arguments.task,
            image_size=size if isinstance(size, int) else None,
            input_size=size if isinstance(size, tuple) else None,
            batch_size=arguments.batch_size,
            platforms=arguments.platforms.split(","),
        )
    for path in exported.save(arguments.out):
        print(path)
    return 0


def _size(text: str) -> int | tuple[int, int]:
    if re.fullmatch(r"\d+x\d+", text):
        height, width = text.split("x")
        return positive(height), positive(width)
    return positive(text)
