# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: list the models with what they cost, and their published weights."""

import argparse

SUMMARY = "list the models and their published weights"

EXAMPLES = """
examples:
  mambaout models
  mambaout models "*_rw"
  mambaout models --family vim
  mambaout models --family mambaout --task detection
  mambaout models "convnext_*" --task segmentation

With --task the figures are those of Mask R-CNN at 1280 x 800 pixels, or of UperNet at 2048 x 512,
on each backbone, as in Tables 2 and 3 of the MambaOut paper. They are counted now, seconds a model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `models`."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="only names that match it; * stands for any characters (default: all)",
    )
    parser.add_argument(
        "--family", metavar="NAME", help="only models of it: the name of a file of models/"
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="what the models are the backbones of (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the table; returns the exit code."""
    from mambaout_jax.weights import catalog

    asked = (arguments.pattern, arguments.family)
    if arguments.task == "classification":
        print(catalog.model_table(*asked))
        return 0
    from mambaout_jax.analysis.dense_cost import dense_table

    for line in dense_table(catalog.matching_models(*asked), arguments.task):
        print(line, flush=True)
    return 0
