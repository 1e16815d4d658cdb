# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: list the models and their published weights."""

import argparse

SUMMARY = "list the models and their published weights"

EXAMPLES = """
examples:
  mambaout models
  mambaout models "*_rw"
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


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the table; returns the exit code."""
    from mambaout_jax.weights.catalog import model_table

    print(model_table(arguments.pattern))
    return 0
