# SPDX-License-Identifier: Apache-2.0
"""`mambaout report`: a table of the paper again, with what is counted and measured here."""

import argparse
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument
from mambaout_jax.cli.errors import positive

SUMMARY = "write a table of the paper again, with what is counted and measured here"

EXAMPLES = """
examples:
  mambaout report table1 --out table1 --quick
  mambaout report table1 --out table1
  mambaout report table1 --out table1 --models "mambaout_*" "vim_*" --batch-size 2

DIR gets table1.csv, table1.md and table1.html, a page that sorts, filters and draws. --quick takes
seconds and measures nothing. Without it images per second and memory of every model are measured,
which takes about an hour on two CPU cores. Each is kept in DIR/table1.json as soon as it is there:
the same command goes on where it was stopped.
"""

_MEASURING = ("models", "batch_size", "rounds", "dtype", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `report`."""
    parser.add_argument(
        "table", choices=("table1",), help="table1: accuracy, parameters and MACs on ImageNet"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder that the files go to"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure nothing: what is not known says so"
    )
    parser.add_argument(
        "--errors",
        type=Path,
        metavar="FILE.json",
        help="logit errors, as tests/logit_errors.py writes them "
        "(experiments/results/logit_errors.json of a clone)",
    )
    add_force_argument(parser, "files of another origin, and measurements of other settings,")
    group = parser.add_argument_group("measuring, without --quick")
    group.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="models to measure, or patterns of their names (all of the table)",
    )
    group.add_argument("--batch-size", type=positive, metavar="B", help="images per call (8)")
    group.add_argument(
        "--rounds", type=positive, metavar="COUNT", help="calls that are timed of each model (5)"
    )
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision (float32)")
    group.add_argument(
        "--device", choices=("cpu", "gpu", "tpu"), help="what to measure (JAX's default)"
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the table; returns the exit code."""
    given = {name: getattr(arguments, name) for name in _MEASURING}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.quick and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        arguments.parser.error(f"--quick measures nothing: leave {options} out, or --quick")
    from mambaout_jax.report.measured import Settings
    from mambaout_jax.report.rows import ERRORS
    from mambaout_jax.report.table1 import report

    files = report(
        arguments.out,
        errors=arguments.errors or (ERRORS if ERRORS.exists() else None),
        models=given.pop("models", None),
        settings=Settings(**given),
        quick=arguments.quick,
        force=arguments.force,
    )
    for file in files:
        print(file)
    return 0
