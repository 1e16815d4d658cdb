# SPDX-License-Identifier: Apache-2.0
"""`mambaout compile`: the real compiler of another machine, asked on this one."""

import argparse
import os
from pathlib import Path

from mambaout_jax.cli.destination import add_force_argument

SUMMARY = "compile what a run would run, for a machine that need not be here"

EXAMPLES = """
examples:
  mambaout compile --config experiments/imagenet/mambaout.py:mambaout_tiny,pod --target v5e-32
  mambaout compile --config experiments/imagenet/mambaout.py:mambaout_tiny,pod --target v5e-32 \\
    --mixers conv,conv+ssm --largest-batch --out compiled/tiny
  mambaout compile --config experiments/quickstart.py --target here

The compilers of TPUs and of NVIDIA GPUs run on any CPU. They need pip install
'mambaout-jax[aot-tpu]' or [aot-gpu], each in an environment of its own. Memory, collectives and
whether a program compiles are facts; what a compiler says of time is its model. ImageNet, COCO and
ADE20K need not be here.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `compile`."""
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=True,
        help="Python file with get_config(); ARG is passed to it",
    )
    parser.add_argument(
        "--target",
        required=True,
        metavar="MACHINE",
        help="v5e-8, v5e-32, v5p-64, v6e-32 (TPUs), h100, h100x8, or here: the devices of this one",
    )
    parser.add_argument(
        "--mixers",
        metavar="NAMES",
        default="",
        help="token mixers to compile with, with commas, such as conv,conv+ssm (the config's)",
    )
    parser.add_argument(
        "--largest-batch",
        action="store_true",
        help="find the largest batch that fits, by compiling some",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="path without suffix, of a .json and a .png"
    )
    add_force_argument(parser, "the files of --out")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Compiles, and prints what the compiler says; returns the exit code."""
    if arguments.target != "here":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device is needed, and none is touched
    from mambaout_jax.aot.report import as_text, compile_for, write
    from mambaout_jax.config_file import override, read_config
    from mambaout_jax.runtime.files import check_destination

    out = arguments.out
    if arguments.force and out is None:
        arguments.parser.error("--force goes with --out")
    if out is not None:
        for suffix in (".json", ".png"):
            check_destination(out.with_name(f"{out.name}{suffix}"), arguments.force)
    config = override(read_config(arguments.config), overrides)
    mixers = [name for name in arguments.mixers.split(",") if name]
    result = compile_for(config, arguments.target, mixers=mixers, search=arguments.largest_batch)
    print(as_text(result))
    for path in write(result, out) if out is not None else ():
        print(path)
    return 0
