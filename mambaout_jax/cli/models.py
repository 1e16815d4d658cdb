# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: list the models and their published weights."""

import argparse

SUMMARY = "list the models and their published weights"

EXAMPLES = """
examples:
  mambaout models
  mambaout models "*_rw"
  mambaout models --family vim
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


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the table; returns the exit code."""
    from mambaout_jax.weights.catalog import model_table

    print(model_table(arguments.pattern, arguments.family))
    return 0
