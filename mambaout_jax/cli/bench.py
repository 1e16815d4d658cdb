# SPDX-License-Identifier: Apache-2.0
"""`mambaout bench`: measure speed against a named peer, one benchmark per question.

An argument's name is that of the benchmark's own parameter (`benchmarks.<question>.run`); one that
is not given keeps the default there.
"""

import argparse
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambaout_jax.cli.destination import add_force_argument, check_output
from mambaout_jax.cli.errors import positive, positive_number

SUMMARY = "measure speed against a named peer"

EXAMPLES = """
examples:
  mambaout bench conv
  mambaout bench conv --quick
  mambaout bench conv --out experiments/results/conv.json
  mambaout bench scan --quick
  mambaout bench scan --out experiments/results/scan.json
  mambaout bench scan --widths 96 384 --lengths 196 3136 --mixers conv chunked attention
  mambaout bench scan --device gpu --dtype bfloat16
  mambaout bench throughput --out experiments/results/throughput.json
  mambaout bench throughput --models mambaout_base convnext_base --batch-size 2
  mambaout bench throughput --models "vim_*" "plainmamba_*" --passes inference --out speed.json
  mambaout bench throughput --models vim_tiny --official vim=../Vim --scans associative
  mambaout bench dense --out experiments/results/dense.json
  mambaout bench dense --tasks segmentation --size 256 256 --backbone convnext_tiny
  mambaout bench input --images-per-second 20000
  mambaout bench input --data imagenet/train --out experiments/results/input.json

Beside FILE.json scan writes FILE.csv and FILE.png, and throughput FILE.png: published accuracy
against measured speed. scan also compares with a peer, where PyTorch and the peer are installed: on
a CPU the Mamba mixer of transformers, on a GPU mamba_ssm's CUDA kernel. throughput needs PyTorch
and timm where timm has a model, without --no-timm, and where official code takes part, which is a
checkout of the authors' repository. dense compares with torchvision and transformers, where they
and timm are installed.
"""

Add = Callable[..., argparse.Action]  # the `add_argument` of a parser or a group

_SUFFIXES = {  # of what `save` writes, where not JSON alone
    "scan": (".json", ".csv", ".png"),
    "throughput": (".json", ".png"),
}
_ON_DEVICE = ("conv", "scan", "throughput", "dense")  # `input` measures the host
_WHOLE_MODELS = ("throughput", "dense")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `bench`, those of single questions in groups of their own."""
    parser.add_argument(
        "question",
        choices=tuple(_OWN_ARGUMENTS),
        help="conv: depthwise convolution, shifts against XLA's own; scan: an SSM against "
        "convolution and attention, as sequences grow; throughput: whole models against timm's "
        "and official ones; dense: Mask R-CNN and UperNet against torchvision's and transformers'; "
        "input: the loader against timm's",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and small measurements, to see that it runs"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write the numbers there, row by row"
    )
    add_force_argument(parser, "the files of --out")
    add = parser.add_argument
    rounds = add(
        "--rounds", type=positive, metavar="COUNT", help="how often each contender has its turn"
    )
    device = add("--device", choices=("cpu", "gpu", "tpu"), help="what to measure (JAX's default)")
    dtype = add("--dtype", choices=("float32", "bfloat16"), help="precision (float32)")
    batch_size = add(
        "--batch-size",
        type=positive,
        metavar="B",
        help="images per call, of throughput (8) and dense (2)",
    )
    passes = add(
        "--passes",
        nargs="+",
        choices=("inference", "training"),
        help="what throughput and dense measure of each model (both)",
    )
    options = [
        (rounds, tuple(_OWN_ARGUMENTS)),
        *((action, _ON_DEVICE) for action in (device, dtype)),
        *((action, _WHOLE_MODELS) for action in (batch_size, passes)),
    ]
    for question, add_own in _OWN_ARGUMENTS.items():
        group = parser.add_argument_group(f"{question} only")
        options += [(action, (question,)) for action in add_own(group.add_argument)]
    parser.set_defaults(options=options)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Measures, prints a table and saves the numbers; returns the exit code."""
    options = _options(arguments)
    if arguments.force and not arguments.out:
        arguments.parser.error("--force goes with --out: nothing else is written")
    for suffix in _SUFFIXES.get(arguments.question, (".json",)) if arguments.out else ():
        path = arguments.out if suffix == ".json" else arguments.out.with_suffix(suffix)
        check_output(arguments, path, suffix)
    benchmark = importlib.import_module(f"mambaout_jax.benchmarks.{arguments.question}")
    if arguments.quick:
        options = benchmark.QUICK | options
    if arguments.out:  # every row as it comes, so that a benchmark that is stopped leaves them
        from mambaout_jax.benchmarks.timing import save_json

        options["keep"] = functools.partial(save_json, path=arguments.out)
    result = benchmark.run(**options)
    benchmark.print_table(result)
    if arguments.out:
        for file in benchmark.save(result, arguments.out):
            print(file)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by parameter of the benchmark.

    One that the question does not take ends the program with code 2.
    """
    question = arguments.question
    options = {}
    for action, questions in arguments.options:
        value = getattr(arguments, action.dest)
        if value is None:
            continue
        if question not in questions:
            reason = (
                ": it measures the host"
                if questions == _ON_DEVICE
                else f"; {' and '.join(questions)} " + ("do" if len(questions) > 1 else "does")
            )
            arguments.parser.error(f"{question} takes no {action.option_strings[0]}{reason}")
        options[action.dest] = value
    return options


def _add_conv_arguments(add: Add) -> list[argparse.Action]:
    return [
        add(
            "--shapes",
            choices=("stages", "sweep"),
            help="the stages of MambaOut-Tiny, or a sweep over maps, channels and kernels (stages)",
        ),
    ]


def _add_scan_arguments(add: Add) -> list[argparse.Action]:
    return [
        add("--widths", type=positive, nargs="+", metavar="D", help="channels (96 ... 576)"),
        add("--lengths", type=positive, nargs="+", metavar="L", help="tokens (49 ... 65536)"),
        add(
            "--mixers",
            nargs="+",
            metavar="MIXER",
            help="conv, sequential, associative, chunked, pallas, attention, causal_attention (all "
            "the platform has)",
        ),
        add("--state-size", type=positive, metavar="N", help="states of the SSM per channel (16)"),
        add(
            "--budget-seconds",
            type=positive_number,
            metavar="S",
            help="time for the calls of one mixer at one length and pass (20)",
        ),
        add(
            "--memory-limit",
            type=positive,
            metavar="BYTES",
            help="memory that a call may take (what is free on the device; two thirds of that if "
            "it is the machine's RAM)",
        ),
    ]


def _add_throughput_arguments(add: Add) -> list[argparse.Action]:
    return [
        add(
            "--models",
            nargs="+",
            metavar="NAME",
            help="models or patterns of their names, or timm's (all MambaOut, and yardsticks)",
        ),
        add("--image-size", type=positive, metavar="PIXELS", help="height and width (224)"),
        add(
            "--scans",
            nargs="+",
            metavar="SCAN",
            help="further implementations of the scan that take part: sequential, associative, "
            "chunked, pallas (none)",
        ),
        add(
            "--official",
            nargs="+",
            action="extend",
            type=_family_and_folder,
            metavar="FAMILY=DIR",
            help="checkouts of the authors' code to take part: vim, vmamba (none)",
        ),
        add(
            "--timm",
            action=argparse.BooleanOptionalAction,
            help="whether timm takes part where it has the model (it does)",
        ),
        add(
            "--compiled",
            action=argparse.BooleanOptionalAction,
            help="whether torch.compile takes part beside timm (it does)",
        ),
    ]


def _family_and_folder(text: str) -> tuple[str, str]:
    """The type of an argument that is FAMILY=DIR."""
    family, _, folder = text.partition("=")
    if not family or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not FAMILY=DIR, such as vim=../Vim")
    return family, folder


def _add_dense_arguments(add: Add) -> list[argparse.Action]:
    return [
        add(
            "--tasks",
            nargs="+",
            choices=("detection", "segmentation"),
            help="Mask R-CNN, UperNet (both)",
        ),
        add("--backbone", metavar="NAME", help="under the heads (mambaout_tiny)"),
        add(
            "--size",
            nargs=2,
            type=positive,
            metavar=("H", "W"),
            help="pixels of the images (800 1344 for detection, 512 512 for segmentation)",
        ),
    ]


def _add_input_arguments(add: Add) -> list[argparse.Action]:
    return [
        add(
            "--data",
            metavar="DIR",
            help="folder of class folders of JPEG files (64 files made from two photographs)",
        ),
        add(
            "--images",
            type=positive,
            metavar="COUNT",
            help="images that each contender makes per turn (512)",
        ),
        add(
            "--images-per-second",
            type=positive_number,
            metavar="R",
            help="what a training run wants; the cores for it are counted (10000)",
        ),
    ]


_OWN_ARGUMENTS: dict[str, Callable[[Add], list[argparse.Action]]] = {
    "conv": _add_conv_arguments,
    "scan": _add_scan_arguments,
    "throughput": _add_throughput_arguments,
    "dense": _add_dense_arguments,
    "input": _add_input_arguments,
}
