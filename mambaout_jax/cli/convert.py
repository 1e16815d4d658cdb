# SPDX-License-Identifier: Apache-2.0
"""`mambaout convert`: weights between PyTorch's names and this project's."""

import argparse
import os
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument, check_output

SUMMARY = "convert weights between PyTorch's names and ours"

EXAMPLES = """
examples:
  mambaout convert mambaout_tiny.pth mambaout_tiny.safetensors
  mambaout convert runs/folder folder_timm.safetensors --naming timm

Without --naming the output has this project's names, with it PyTorch's.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `convert`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="weights, as `mambaout predict --weights` takes them"
    )
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, where the weights do not tell it"
    )
    parser.add_argument(
        "--naming", metavar="NAMING", help="names in the output, timm or official (default: ours)"
    )
    add_force_argument(parser, "a file OUT")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the converted weights; returns the exit code."""
    out = arguments.out
    check_output(arguments, out, ".safetensors")
    if os.path.exists(arguments.source) and out.exists() and out.samefile(arguments.source):
        arguments.parser.error(f"{out} is the source itself; name another file to write")
    from mambaout_jax.weights.load import convert_file

    print(convert_file(arguments.source, out, arguments.model, arguments.naming))
    return 0
