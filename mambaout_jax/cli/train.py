# SPDX-License-Identifier: Apache-2.0
"""`mambaout train`: train a model as a config file says, or resume a run."""

import argparse
import time
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument, check_output
from mambaout_jax.cli.distributed import (
    add_distributed_argument,
    is_first_process,
    join_processes,
)
from mambaout_jax.cli.errors import run_training
from mambaout_jax.runtime.streams import say

SUMMARY = "train a model, or resume a run"

EXAMPLES = """
examples:
  mambaout train --config experiments/quickstart.py
  mambaout train --config experiments/quickstart.py --workdir /tmp/run --config.seed=1
  mambaout train --config experiments/quickstart.py --workdir gs://bucket/run
  mambaout train --config experiments/quickstart.py --dry-run

The same command again resumes the run at its last checkpoint, whether it ended or was stopped.
SIGTERM and Ctrl-C save first and exit with code 75.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `train`."""
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=True,
        help="Python file with get_config(); ARG is passed to it",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where the run is kept, a folder or gs://bucket/folder or s3://bucket/folder "
        "(default: runs/<name of the file>)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe and what it costs, and stop",
    )
    parser.add_argument(
        "--show-batch",
        type=Path,
        metavar="PNG",
        help="draw the first batch as the model will see it, and stop",
    )
    add_force_argument(parser, "the PNG of --show-batch")
    add_distributed_argument(parser)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains, or only shows what would be trained; returns the exit code."""
    from mambaout_jax.config_file import override, read_config, split_argument

    began = time.perf_counter()
    if arguments.force and not arguments.show_batch:
        arguments.parser.error("--force goes with --show-batch: a run is resumed, never replaced")
    if arguments.show_batch:
        check_output(arguments, arguments.show_batch, ".png")
    file, _ = split_argument(arguments.config)
    workdir = arguments.workdir or Path("runs") / Path(file).stem
    if not (arguments.dry_run or arguments.show_batch):
        _check_free(workdir)  # before the seconds that all else takes to begin
    config = override(read_config(arguments.config), overrides)
    join_processes(arguments.distributed)
    from mambaout_jax.train.preview import describe, show_batch

    if arguments.dry_run:
        print(describe(config))
        return 0
    if arguments.show_batch:
        show_batch(config, arguments.show_batch)
        print(arguments.show_batch)
        return 0
    return run_training(lambda: _train(config, workdir, began))


def _check_free(workdir: Path | str) -> None:
    if isinstance(workdir, Path):
        from mambaout_jax.runtime.lock import DirectoryLock

        DirectoryLock(workdir).check()
    else:
        from mambaout_jax.runtime.bucket import Bucket
        from mambaout_jax.runtime.bucket_lock import BucketLock

        BucketLock(Bucket(workdir)).check()


def _train(config, workdir: Path | str, began: float) -> None:
    from mambaout_jax.evaluation.evaluator import format_metrics
    from mambaout_jax.train.loop import train

    metrics = train(config, workdir)
    if is_first_process():
        seconds = time.perf_counter() - began
        say(f"{format_metrics(metrics)}  ({seconds:.0f} s, {workdir})")
