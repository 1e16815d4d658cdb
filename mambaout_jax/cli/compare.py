# SPDX-License-Identifier: Apache-2.0
"""`mambaout compare`: one config trained with several token mixers, and what the SSM brings."""

import argparse
from pathlib import Path

from mambaout_jax.cli.distributed import (
    add_distributed_argument,
    is_first_process,
    join_processes,
)
from mambaout_jax.cli.errors import positive, run_training

SUMMARY = "train one config with several token mixers, and tell their difference"

EXAMPLES = """
examples:
  mambaout compare --config experiments/quickstart.py --mixers conv,conv+ssm
  mambaout compare --config experiments/quickstart.py --mixers conv,conv+ssm --dry-run
  mambaout compare --config experiments/quickstart.py --mixers conv,conv+ssm --equal width
  mambaout compare --config experiments/folder.py:mambaout_tiny --seeds 5 --out runs/photos \\
    --mixers conv,conv+ssm,conv+ssm:bidirectional --config.data.path=photos

Every mixer is trained once per seed, in DIR/<mixer>/seed_<n>, as `mambaout train` would do it, and
held against the first. Seeds count from the config's own. What was found is printed and kept in
DIR/compare.json and DIR/compare.md.

The same command again goes on where it was stopped; more --seeds add runs, and so do more --mixers
that are not dearer than those there (with a dearer one all MACs rise, and all runs are others).
SIGTERM and Ctrl-C save first and exit with code 75.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `compare`."""
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=True,
        help="Python file with get_config(), of a model with a token mixer; ARG is passed to it",
    )
    parser.add_argument(
        "--mixers",
        metavar="NAMES",
        required=True,
        help="two or more of conv, conv+ssm, conv+ssm:ROUTES, ssm and attention, with commas; the "
        "others are held against the first",
    )
    parser.add_argument(
        "--seeds", type=positive, default=3, metavar="COUNT", help="runs of each mixer (3)"
    )
    parser.add_argument(
        "--equal",
        choices=("macs", "width"),
        default="macs",
        help="macs: the dearest mixer has the gate of the config, and the gates of the others are "
        "so much wider that all have its multiply-accumulates; width: all have the gate of the "
        "config (macs)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where runs and results are kept (default: runs/<name of the file>_compare)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be trained, and stop"
    )
    add_distributed_argument(parser)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Compares, or only shows what would be compared; returns the exit code."""
    from mambaout_jax.ablation.gates import parse_mixers
    from mambaout_jax.config_file import override, read_config, split_argument
    from mambaout_jax.runtime.lock import DirectoryLock

    mixers = parse_mixers(arguments.mixers)
    file, _ = split_argument(arguments.config)
    out = arguments.out or Path("runs") / f"{Path(file).stem}_compare"
    if not arguments.dry_run:
        DirectoryLock(out).check()  # before the seconds that all else takes to begin
    config = override(read_config(arguments.config), overrides)
    join_processes(arguments.distributed)
    from mambaout_jax.ablation.compare import Comparison, compare
    from mambaout_jax.ablation.findings import as_markdown, as_plan
    from mambaout_jax.ablation.gates import contenders
    from mambaout_jax.runtime.streams import say
    from mambaout_jax.tasks.setup import set_up

    setup = set_up(config)
    models = contenders(setup, mixers, arguments.equal)
    comparison = Comparison(arguments.config, setup, models, arguments.equal)
    if is_first_process():
        say(as_plan(models, arguments.seeds, setup.resolved.total_steps, out))
    if arguments.dry_run:
        return 0

    def train() -> None:
        result = compare(comparison, arguments.seeds, out)
        if is_first_process():
            say(as_markdown(result))

    return run_training(train)
