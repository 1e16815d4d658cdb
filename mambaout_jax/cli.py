# SPDX-License-Identifier: Apache-2.0
"""The command line: each verb reads its arguments and calls one function.

The verbs import what they need themselves, so that `mambaout --help` is quick.
"""

import argparse
import difflib
import json
import logging
import os
import re
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mambaout_jax import __version__
from mambaout_jax.config import Config, load_config

_OVERRIDES = """
Any setting of the config file can be set from the command line:
  --config.batch_size=128  --config.optimizer.learning_rate=1e-3  --config.augment.scale="(0.3, 1)"
A duration in epochs gives way to one in updates: --config.schedule.total_steps=100
All settings with their meaning: mambaout_jax/config.py
"""

_TRAIN = f"""
examples:
  mambaout train --config experiments/quickstart.py
  mambaout train --config experiments/quickstart.py --workdir /tmp/run --config.seed=1
  mambaout train --config experiments/quickstart.py --dry-run

The same command again goes on where the last one stopped, or was stopped. SIGTERM and Ctrl-C save
first and exit with code 75.
{_OVERRIDES}"""

_EVALUATE = f"""
examples:
  mambaout evaluate --workdir runs/quickstart
  mambaout evaluate --workdir runs/quickstart --config.evaluation.batch_size=64
{_OVERRIDES}"""


_BENCH = """
examples:
  mambaout bench conv
  mambaout bench conv --quick
  mambaout bench conv --out experiments/results/conv.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 75 preempted."""
    arguments, rest = _parser().parse_known_args(argv)
    _reject_unknown(arguments.parser, rest)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return arguments.run(arguments, rest)
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError,
            ImportError) as error:  # fmt: skip
        if os.environ.get("MAMBAOUT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        usage = ValueError | TypeError | FileNotFoundError | NotADirectoryError
        return 2 if isinstance(error, usage) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mambaout",
        description="Does this vision task need an SSM, or is a gated convolution enough?",
        epilog="mambaout VERB --help shows a verb's arguments with examples. "
        "MAMBAOUT_TRACEBACK=1 shows where an error arose.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mambaout-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    train = _verb(verbs, "train", "train a model, or go on with a run", _TRAIN, _train)
    train.add_argument("--config", metavar="FILE[:ARG]", required=True,
                       help="Python file with get_config(); ARG is handed to it")  # fmt: skip
    train.add_argument("--workdir", type=Path, metavar="DIR",
                       help="where the run is kept (default: runs/<name of the file>)")  # fmt: skip
    train.add_argument("--dry-run", action="store_true",
                       help="print the resolved recipe and what it costs, and stop")  # fmt: skip
    evaluate = _verb(verbs, "evaluate", "evaluate a run's newest checkpoint", _EVALUATE, _evaluate)
    evaluate.add_argument("--workdir", type=Path, metavar="DIR", required=True, help="of the run")
    evaluate.add_argument("--config", metavar="FILE[:ARG]",
                          help="other settings than those of the run")  # fmt: skip
    for verb in (train, evaluate):
        verb.add_argument("--distributed", nargs="?", const="", metavar="HOST:PORT,COUNT,INDEX",
                          help="join the other processes of this run: found by itself on Slurm, "
                          "Open MPI, Cloud TPU and Kubernetes, else as given")  # fmt: skip
    bench = _verb(verbs, "bench", "measure speed against a named peer", _BENCH, _bench)
    bench.add_argument("question", choices=("conv",), help="conv: depthwise convolution, "
                       "shifts against XLA's own")  # fmt: skip
    bench.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    bench.add_argument("--out", type=Path, metavar="FILE", help="raw numbers as JSON")
    return parser


def _verb(verbs, name: str, summary: str, epilog: str, run) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".",
                            epilog=epilog, allow_abbrev=False,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    verb.set_defaults(run=run, parser=verb)
    return verb


def _reject_unknown(verb: argparse.ArgumentParser, rest: list[str]) -> None:
    known = re.findall(r"--[a-z-]+", verb.format_usage())
    for argument in rest:
        takes_settings = "--config" in known
        if takes_settings and (argument.startswith("--config.") or not argument.startswith("-")):
            continue  # a setting, or the value of one
        close = difflib.get_close_matches(argument.split("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        verb.error(f"there is no argument {argument}{hint}")


def read_config(file: str) -> Config:
    """The config that `get_config` of a Python file returns.

    Args:
        file: path, with ":ARG" after it where `get_config` takes an argument.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no `get_config`.
    """
    path, argument = _path_and_argument(file)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no config file {path}; a clone of the project has them in experiments/"
        )
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ValueError(
            f"{path} has no get_config(); see experiments/quickstart.py for what a config file is"
        )
    return get_config() if argument is None else get_config(argument)


def _path_and_argument(file: str) -> tuple[str, str | None]:
    path, separator, argument = file.partition(".py:")  # the path itself may hold a colon
    return (f"{path}.py", argument) if separator else (file, None)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config with settings from the command line, such as "--config.batch_size=128".

    Raises:
        ValueError: one names no setting, or has a value of the wrong type.
    """
    values = flags.FlagValues()
    argv = ["mambaout", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        hint = str(error).strip("'\"").replace("\\'", "'").replace("\\n", ". ").replace("\n", ". ")
        raise ValueError(f"there is no setting {hint}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings look like --config.key=value")
    return values["config"].value


def _join(arguments: argparse.Namespace) -> None:
    """Joins the processes of a distributed run; must come before any other call of JAX."""
    if arguments.distributed is None:
        return
    import jax

    try:
        if arguments.distributed:
            address, count, index = arguments.distributed.split(",")
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"--distributed={arguments.distributed} finds no other process ({error}); give it "
            "HOST:PORT,COUNT,INDEX: the address of process 0, how many processes there are, and "
            "which this one is, from 0"
        ) from error


def _train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    began = time.perf_counter()
    config = override(read_config(arguments.config), overrides)
    _join(arguments)
    from mambaout_jax.train.loop import describe, format_metrics, train
    from mambaout_jax.train.preemption import EXIT_CODE, Preempted

    if arguments.dry_run:
        print(describe(config))
        return 0
    workdir = arguments.workdir or Path("runs") / Path(_path_and_argument(arguments.config)[0]).stem
    try:
        metrics = train(config, workdir)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    print(f"{format_metrics(metrics)}  ({time.perf_counter() - began:.0f} s, {workdir})")
    return 0


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    _join(arguments)
    from mambaout_jax.train.evaluate import evaluate
    from mambaout_jax.train.loop import format_metrics

    if arguments.config:
        config = read_config(arguments.config)
    else:
        config = load_config(arguments.workdir / "config.json")
    config = override(config, overrides)
    print(format_metrics(evaluate(config, arguments.workdir)))
    return 0


def _bench(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.benchmarks.conv import bench_conv, print_table

    result = bench_conv(quick=arguments.quick)
    print_table(result)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0
