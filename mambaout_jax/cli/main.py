# SPDX-License-Identifier: Apache-2.0
"""The parser of the command line, assembled from the verbs, and its entry point."""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mambaout_jax import __version__
from mambaout_jax.cli import (
    analyse,
    bench,
    compare,
    compile,
    convert,
    evaluate,
    export,
    models,
    predict,
    prepare,
    report,
    train,
)
from mambaout_jax.cli.distributed import has_joined, leave
from mambaout_jax.cli.errors import INTERRUPTED, option_names, reject_unknown
from mambaout_jax.cli.errors import report as report_error
from mambaout_jax.paths import local_path, workdir_path
from mambaout_jax.runtime.streams import complain, discard, is_broken, open_missing_streams

VERBS = (
    train,
    evaluate,
    compare,
    compile,
    predict,
    models,
    convert,
    export,
    prepare,
    analyse,
    bench,
    report,
)

_SETTINGS_HELP = """
Any setting of the config file can be set from the command line:
  --config.batch_size=128  --config.optimizer.learning_rate=1e-3  --config.augment.scale="(0.3, 1)"
A duration given in updates replaces the one in epochs: --config.schedule.total_steps=100
All settings with their meaning: mambaout_jax/config.py
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; None: those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 70 a fault of this program, 75 stopped on
        request and resumable, 130 interrupted, 141 the output is no longer read.
    """
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments, rest = build_parser().parse_known_args(argv)
        reject_unknown(arguments.parser, rest)
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        _expand_paths(arguments)
        code = arguments.run(arguments, rest)
        sys.stdout.flush()  # what cannot be written is to be told here, not while Python ends
        return code
    except KeyboardInterrupt:
        complain("interrupted")
        code = INTERRUPTED
    except Exception as error:
        code = report_error(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if is_broken(stream):
                discard(stream)
    if has_joined():  # the others would wait for this process, and it for them
        leave(code)
    return code


def _expand_paths(arguments: argparse.Namespace) -> None:
    """`~` in every argument that is a path; only working directories may be in a bucket.

    Those become strings, such as gs://bucket/run, and the others stay paths.
    """
    for name, value in vars(arguments).items():
        expand = workdir_path if name in ("workdir", "workdirs") else local_path
        if isinstance(value, Path):
            setattr(arguments, name, expand(value))
        elif isinstance(value, list) and value and isinstance(value[0], Path):
            setattr(arguments, name, [expand(path) for path in value])


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line.

    What it parses has, besides the verb's arguments, `verb` (its name), `run` (its function) and
    `parser` (its own parser, for errors).
    """
    parser = argparse.ArgumentParser(
        prog="mambaout",
        description="Does this vision task need an SSM, or is a gated convolution enough?",
        epilog="mambaout VERB --help shows a verb's arguments with examples. "
        "MAMBAOUT_TRACEBACK=1 shows where an error arose.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mambaout-jax {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        _add_verb(subparsers, verb)
    return parser


def _add_verb(subparsers, verb: ModuleType) -> None:
    parser = subparsers.add_parser(
        verb.__name__.rpartition(".")[2],
        help=verb.SUMMARY,
        description=f"{verb.SUMMARY[0].upper()}{verb.SUMMARY[1:]}.",
        epilog=verb.EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    if "--config" in option_names(parser):
        parser.epilog += _SETTINGS_HELP
    parser.set_defaults(run=verb.run, parser=parser)
