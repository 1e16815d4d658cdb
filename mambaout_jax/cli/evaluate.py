# SPDX-License-Identifier: Apache-2.0
"""`mambaout evaluate`: a run on its own data, any weights on labelled images, or on test sets."""

import argparse
import contextlib
from pathlib import Path

from mambaout_jax.cli.distributed import (
    add_distributed_argument,
    is_first_process,
    join_processes,
)
from mambaout_jax.runtime.files import check_destination

SUMMARY = "evaluate a run, or weights on a folder of images"

EXAMPLES = """
examples:
  mambaout evaluate --workdir runs/quickstart
  mambaout evaluate --workdir runs/quickstart --config.evaluation.batch_size=64
  mambaout evaluate --workdir runs/quickstart --figures pictures/
  mambaout evaluate --weights mambaout_tiny.in1k --data imagenet/val --figures pictures/
  mambaout evaluate --weights mambaout_tiny.in1k --suite DIR --json suites.json
  mambaout evaluate --weights mambaout_tiny.in1k --suite DIR --suites val,real,v2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `evaluate`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="working directory of a run, a folder or gs://bucket/folder or s3://bucket/folder",
    )
    source.add_argument(
        "--weights", metavar="SOURCE", help="weight file, published name, hub repository or run"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled images in sub-folders named after their classes; all count, but where DIR "
        "has training and validation folders, or is what the run was trained on, those held out; "
        "for detection and segmentation the validation split of a folder like COCO's or ADE20K's",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="where to draw the confusion matrix and the mistakes, with a table per class",
    )
    parser.add_argument(
        "--suite",
        type=Path,
        metavar="DIR",
        help="folder with ImageNet's test sets: imagenet, real.json, imagenet-v2, -a, -r, -sketch, "
        "-c; those that are there are evaluated",
    )
    parser.add_argument(
        "--suites", metavar="NAMES", help="only these test sets, out of val,real,v2,a,r,sketch,c"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results of the test sets to FILE"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the figures or the FILE of an earlier call"
    )
    parser.add_argument(
        "--config", metavar="FILE[:ARG]", help="settings to use instead of those of the run"
    )
    add_distributed_argument(parser)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluates and prints the metrics; returns the exit code."""
    labelled_images = arguments.data or arguments.figures
    if labelled_images if arguments.suite else arguments.suites or arguments.json:
        arguments.parser.error("--suites and --json go with --suite; --data and --figures do not")
    if arguments.force and not (arguments.figures or arguments.json):
        arguments.parser.error("--force goes with --figures or --json: nothing else is written")
    if arguments.json:
        check_destination(arguments.json, arguments.force)
    join_processes(arguments.distributed)
    from mambaout_jax.runtime.workdir import run_copy
    from mambaout_jax.weights.locate import copied_run

    with contextlib.ExitStack() as copies:
        if arguments.weights:
            arguments.weights = copies.enter_context(copied_run(arguments.weights))
        else:
            arguments.workdir = copies.enter_context(run_copy(arguments.workdir))
        if arguments.suite:
            _evaluate_suites(arguments, overrides)
        elif arguments.weights or labelled_images:
            _evaluate_images(arguments, overrides)
        else:
            _evaluate_run(arguments, overrides)
    return 0


def _evaluate_suites(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Any weights on ImageNet's test sets."""
    from mambaout_jax.evaluation.suites import SUITES, report_suites, suite_config

    source = arguments.weights or arguments.workdir
    config = suite_config(source, overrides, _read_config(arguments))
    names = arguments.suites.split(",") if arguments.suites else SUITES
    report_suites(source, config, arguments.suite, names, arguments.json)


def _evaluate_images(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Any weights on labelled images, with figures."""
    from mambaout_jax.config_file import override
    from mambaout_jax.evaluation.assess import assessment_config, report_assessment

    source = arguments.weights or arguments.workdir
    config = assessment_config(source, arguments.data, _read_config(arguments))
    report_assessment(source, override(config, overrides), arguments.figures, arguments.force)


def _evaluate_run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """A run on the validation split that it was trained with."""
    from mambaout_jax.config_file import load_config, override
    from mambaout_jax.evaluation.evaluator import evaluate, format_metrics

    config = _read_config(arguments) or load_config(arguments.workdir / "config.json")
    metrics = evaluate(override(config, overrides), arguments.workdir)
    if is_first_process():
        print(format_metrics(metrics))


def _read_config(arguments: argparse.Namespace):
    """The config of --config; None where it was not given."""
    from mambaout_jax.config_file import read_config

    return read_config(arguments.config) if arguments.config else None
