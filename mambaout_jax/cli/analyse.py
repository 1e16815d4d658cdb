# SPDX-License-Identifier: Apache-2.0
"""`mambaout analyse`: draw what runs have measured, or the blocks that are compared."""

import argparse
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument, check_output

SUMMARY = "draw what runs have measured, or the blocks that are compared"

EXAMPLES = """
examples:
  mambaout analyse curves runs/quickstart --out curves.png
  mambaout analyse curves runs/a runs/b runs/c
  mambaout analyse blocks --out blocks.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `analyse`."""
    parser.add_argument(
        "question",
        choices=("curves", "blocks"),
        help="curves: losses, accuracy and learning rate of runs; blocks: the Gated CNN block "
        "beside the Mamba block",
    )
    parser.add_argument(
        "workdirs",
        nargs="*",
        type=Path,
        metavar="WORKDIR",
        help="working directories of the runs, for curves; folders, gs://… or s3://…",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="file to write (default: QUESTION.png)"
    )
    add_force_argument(parser, "a PNG")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Draws one picture and prints its path; returns the exit code."""
    workdirs = arguments.workdirs
    if arguments.question == "curves" and not workdirs:
        arguments.parser.error("curves takes at least one WORKDIR, and got 0")
    if arguments.question == "blocks" and workdirs:
        arguments.parser.error(f"blocks takes no WORKDIR, and got {len(workdirs)}")
    out = arguments.out or Path(f"{arguments.question}.png")
    check_output(arguments, out, ".png")
    if arguments.question == "curves":
        _draw_curves(workdirs, out)
    else:
        from mambaout_jax.analysis.diagram import draw_blocks

        draw_blocks(out)
    print(out)
    return 0


def _draw_curves(workdirs: list[Path | str], out: Path) -> None:
    from mambaout_jax.analysis.figures import draw_curves
    from mambaout_jax.runtime.workdir import run_copy
    from mambaout_jax.train.writer import read_metrics

    metrics = {}
    for workdir in workdirs:
        with run_copy(workdir, checkpoint=False) as folder:
            metrics[str(workdir)] = read_metrics(folder)
    draw_curves(metrics, out)
