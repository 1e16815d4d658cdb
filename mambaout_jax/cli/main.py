# SPDX-License-Identifier: Apache-2.0
"""The command line: each verb reads its arguments and calls one function.

The verbs import what they need themselves, so that `mambaout --help` is quick.
"""

import argparse
import difflib
import functools
import importlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mambaout_jax import __version__
from mambaout_jax.cli.examples import EXAMPLES
from mambaout_jax.config import Config
from mambaout_jax.config_file import load_config, override, read_config, split_argument

# Of one question only; without an argument the benchmark's own `run` decides.
_BENCH_CONV = {
    "--shapes": {"choices": ("stages", "sweep"),
                 "help": "of MambaOut-Tiny's stages, or a sweep over maps, channels and kernels"},
}  # fmt: skip
_BENCH_SCAN = {
    "--widths": {"type": int, "nargs": "+", "metavar": "D", "help": "channels (96 ... 576)"},
    "--lengths": {"type": int, "nargs": "+", "metavar": "L", "help": "tokens (49 ... 65536)"},
    "--mixers": {"nargs": "+", "metavar": "MIXER",
                 "help": "conv, sequential, associative, chunked, pallas, attention, "
                 "causal_attention (all the platform has)"},
    "--state-size": {"type": int, "metavar": "N", "help": "of the SSM (16)"},
    "--budget-seconds": {"type": float, "metavar": "S",
                         "help": "for the calls of one mixer at one length and pass (20)"},
    "--memory-limit": {"type": int, "metavar": "BYTES", "help": "that a call may take (what is "
                       "free on the device; of RAM two thirds of that)"},
}  # fmt: skip
_BENCH_THROUGHPUT = {
    "--models": {"nargs": "+", "metavar": "NAME", "help": "of timm (all MambaOut, yardsticks)"},
    "--batch-size": {"type": int, "metavar": "B", "help": "images per call (8)"},
    "--image-size": {"type": int, "metavar": "PIXELS", "help": "height and width (224)"},
    "--compiled": {"action": argparse.BooleanOptionalAction,
                   "help": "torch.compile takes part (it does)"},
}  # fmt: skip
_BENCH_INPUT = {
    "--data": {"metavar": "DIR", "help": "a folder of class folders of JPEG files (64 are made)"},
    "--images": {"type": int, "metavar": "COUNT", "help": "of each contender per turn (512)"},
    "--images-per-second": {"type": float, "metavar": "R",
                            "help": "that a training run wants, to count cores for (10000)"},
}  # fmt: skip
_BENCH_OWN = {"conv": _BENCH_CONV, "scan": _BENCH_SCAN, "throughput": _BENCH_THROUGHPUT,
              "input": _BENCH_INPUT}  # fmt: skip


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
    train = _verb(verbs, "train", "train a model, or go on with a run", _train)
    train.add_argument("--config", metavar="FILE[:ARG]", required=True,
                       help="Python file with get_config(); ARG is handed to it")  # fmt: skip
    train.add_argument("--workdir", type=Path, metavar="DIR",
                       help="where the run is kept (default: runs/<name of the file>)")  # fmt: skip
    train.add_argument("--dry-run", action="store_true",
                       help="print the resolved recipe and what it costs, and stop")  # fmt: skip
    train.add_argument("--show-batch", type=Path, metavar="PNG",
                       help="draw the first batch as the model will see it, and stop")  # fmt: skip
    evaluate = _verb(
        verbs, "evaluate", "evaluate a run, or weights on a folder of images", _evaluate
    )
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=Path, metavar="DIR", help="of the run")
    what.add_argument("--weights", metavar="SOURCE", help="file, published name or hub repository")
    evaluate.add_argument("--data", type=Path, metavar="DIR",
                          help="labelled images, a sub-folder per class")  # fmt: skip
    evaluate.add_argument("--figures", type=Path, metavar="DIR",
                          help="for confusion matrix, table per class, mistakes")  # fmt: skip
    evaluate.add_argument("--suite", type=Path, metavar="DIR",
                          help="ImageNet's test sets: imagenet, real.json, imagenet-v2, -a, -r, "
                          "-sketch, -c, those that are there")  # fmt: skip
    evaluate.add_argument("--suites", metavar="NAMES",
                          help="only these, of val,real,v2,a,r,sketch,c")  # fmt: skip
    evaluate.add_argument("--json", type=Path, metavar="FILE",
                          help="write the numbers of the suites there")  # fmt: skip
    evaluate.add_argument("--config", metavar="FILE[:ARG]",
                          help="other settings than those of the run")  # fmt: skip
    for verb in (train, evaluate):
        verb.add_argument("--distributed", nargs="?", const="", metavar="HOST:PORT,COUNT,INDEX",
                          help="join the other processes of this run: found by itself on Slurm, "
                          "Open MPI, Cloud TPU and Kubernetes, else as given")  # fmt: skip
    predict = _verb(verbs, "predict", "name what images show", _predict)
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    predict.add_argument("--weights", metavar="SOURCE", required=True)
    predict.add_argument("--model", metavar="NAME", help="where the weights do not tell it")
    predict.add_argument("--image-size", type=int, metavar="PIXELS", help="other than published")
    predict.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (5)")
    predict.add_argument("--json", action="store_true", help="one JSON object per image")
    predict.add_argument("--grid", type=Path, metavar="PNG", help="draw images with predictions")
    models = _verb(verbs, "models", "list the models and their published weights", _models)
    models.add_argument("pattern", nargs="?", default="*", metavar="PATTERN")
    convert = _verb(verbs, "convert", "convert weights between PyTorch's names and ours", _convert)
    convert.add_argument("source", metavar="SOURCE", help="what `predict --weights` takes")
    convert.add_argument("out", type=Path, metavar="OUT.safetensors")
    convert.add_argument("--model", metavar="NAME", help="where the weights do not tell it")
    convert.add_argument("--naming", metavar="NAMING", help="of the output: timm, official")
    _add_prepare_verb(verbs)
    _add_measuring_verbs(verbs)
    return parser


def _add_prepare_verb(verbs) -> None:
    prepare = _verb(
        verbs, "prepare", "write a data set in the form that training reads best", _prepare
    )
    prepare.add_argument("dataset", choices=("imagenet",))
    prepare.add_argument("--train-tar", type=Path, metavar="FILE",
                         help="ILSVRC2012_img_train.tar")  # fmt: skip
    prepare.add_argument("--val-tar", type=Path, metavar="FILE", help="ILSVRC2012_img_val.tar")
    prepare.add_argument("--folder", type=Path, metavar="DIR",
                         help="instead of archives: train/ and val/ with a sub-folder per "
                         "synset (val/ may also hold the images themselves)")  # fmt: skip
    prepare.add_argument("--out", type=Path, metavar="DIR", required=True,
                         help="as large as the archives")  # fmt: skip
    prepare.add_argument("--val-labels", type=Path, metavar="FILE",
                         help="synset of each validation image, one a line (those of "
                         "tensorflow_datasets)")  # fmt: skip
    prepare.add_argument("--partial", action="store_true",
                         help="accept fewer images than ImageNet has")  # fmt: skip
    prepare.add_argument("--processes", type=int, metavar="COUNT", help="(one per core)")


def _add_measuring_verbs(verbs) -> None:
    analyse = _verb(verbs, "analyse", "draw what runs have measured, or what is compared", _analyse)
    analyse.add_argument("question", choices=("curves", "blocks"),
                         help="curves: losses, accuracy, learning rate of runs; "
                         "blocks: the Gated CNN block beside the Mamba block")  # fmt: skip
    analyse.add_argument("workdirs", nargs="*", type=Path, metavar="WORKDIR", help="for curves")
    analyse.add_argument("--out", type=Path, metavar="PNG", help="(QUESTION.png)")
    bench = _verb(verbs, "bench", "measure speed against a named peer", _bench)
    bench.add_argument("question", choices=tuple(_BENCH_OWN),
                       help="conv: depthwise convolution, shifts against XLA's own; scan: an SSM "
                       "against convolution and attention, as sequences grow; throughput: whole "
                       "models against timm's; input: the loader against timm's")  # fmt: skip
    bench.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    bench.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write the numbers there, row by row"
    )
    bench.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="to measure (JAX's default)")
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32)")
    bench.add_argument("--rounds", type=int, metavar="COUNT", help="turns of each contender")
    for question, options in _BENCH_OWN.items():
        group = bench.add_argument_group(f"of {question} only")
        for name, option in options.items():
            group.add_argument(name, default=None, **option)


def _verb(verbs, name: str, summary: str, run) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".",
                            epilog=EXAMPLES[name], allow_abbrev=False,
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
    from mambaout_jax.train.loop import describe, format_metrics, show_batch, train
    from mambaout_jax.train.preemption import EXIT_CODE, Preempted

    if arguments.dry_run:
        print(describe(config))
        return 0
    if arguments.show_batch:
        show_batch(config, arguments.show_batch)
        print(arguments.show_batch)
        return 0
    workdir = arguments.workdir or Path("runs") / Path(split_argument(arguments.config)[0]).stem
    try:
        metrics = train(config, workdir)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    import jax

    if jax.process_index() == 0:
        seconds = time.perf_counter() - began
        print(f"{format_metrics(metrics)}  ({seconds:.0f} s, {workdir})")
    return 0


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    _join(arguments)
    from mambaout_jax.evaluation.evaluator import evaluate
    from mambaout_jax.evaluation.suites import SUITES, report_suites, suite_config
    from mambaout_jax.train.loop import format_metrics

    source, images = arguments.weights or arguments.workdir, arguments.data or arguments.figures
    config = read_config(arguments.config) if arguments.config else None
    wrong = images if arguments.suite else arguments.suites or arguments.json
    if wrong:
        arguments.parser.error("--suites and --json go with --suite; --data and --figures do not")
    if arguments.suite:
        names = arguments.suites.split(",") if arguments.suites else SUITES
        how = suite_config(source, overrides, config)
        report_suites(source, how, arguments.suite, names, arguments.json)
        return 0
    if arguments.weights or images:
        return _assess(arguments, source, config, overrides)
    config = override(config or load_config(arguments.workdir / "config.json"), overrides)
    print(format_metrics(evaluate(config, arguments.workdir)))
    return 0


def _assess(arguments, source: str | Path, config: Config | None, overrides: list[str]) -> int:
    from mambaout_jax.data.sets.sources import open_source
    from mambaout_jax.evaluation import predict
    from mambaout_jax.train.loop import format_metrics

    chosen = override(predict.assessment_config(source, arguments.data, config), overrides)
    data = open_source(chosen.data, "validation")
    how = predict.configured_preprocessing(chosen, source)
    predictor = predict.make_predictor(source, preprocessing=how)
    assessment = predict.assess(predictor, chosen, data)
    print(format_metrics(assessment.metrics))
    if arguments.figures:
        for file in predict.draw_assessment(assessment, predictor, data, arguments.figures):
            print(file)
    return 0


def _predict(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.evaluation.predict import draw_predictions, make_predictor, predict_files
    from mambaout_jax.weights.load import describe_source

    how = describe_source(arguments.weights, arguments.model, arguments.image_size)
    predictor = make_predictor(arguments.weights, arguments.model, how)
    predictions = []
    for prediction in predict_files(predictor, arguments.images, arguments.top):
        predictions.append(prediction)
        pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))
        if arguments.json:
            row = {"path": str(prediction.path), "classes": [
                {"name": name, "probability": round(share, 6)} for name, share in pairs
            ]}  # fmt: skip
            print(json.dumps(row))
        else:
            print(prediction.path, *(f"  {100 * share:5.1f} %  {name}" for name, share in pairs),
                  sep="\n")  # fmt: skip
    if arguments.grid:
        draw_predictions(predictions, arguments.grid)
    return 0


def _models(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.weights.catalog import model_table

    print(model_table(arguments.pattern))
    return 0


def _convert(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.weights.load import convert_file

    print(convert_file(arguments.source, arguments.out, arguments.model, arguments.naming))
    return 0


def _prepare(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.data.prepare.imagenet import prepare_imagenet

    try:
        prepared = prepare_imagenet(
            arguments.out, train_tar=arguments.train_tar, val_tar=arguments.val_tar,
            folder=arguments.folder, val_labels=arguments.val_labels, partial=arguments.partial,
            processes=arguments.processes,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 75
    print(prepared)
    return 0


def _analyse(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.analysis.diagram import draw_blocks
    from mambaout_jax.analysis.figures import draw_curves
    from mambaout_jax.train.writer import read_metrics

    out, workdirs = arguments.out or Path(f"{arguments.question}.png"), arguments.workdirs
    if (arguments.question == "curves") != bool(workdirs):
        wanted = "at least one WORKDIR" if arguments.question == "curves" else "no WORKDIR"
        arguments.parser.error(f"{arguments.question} takes {wanted}, and got {len(workdirs)}")
    if arguments.question == "curves":
        draw_curves({str(workdir): read_metrics(workdir) for workdir in workdirs}, out)
    else:
        draw_blocks(out)
    print(out)
    return 0


def _bench(arguments: argparse.Namespace, _: list[str]) -> int:
    from mambaout_jax.benchmarks.timing import save_json

    question, given = arguments.question, {}
    for owner, options in {None: ("--device", "--dtype", "--rounds"), **_BENCH_OWN}.items():
        for option in options:
            value = getattr(arguments, name := option[2:].replace("-", "_"))
            if value is None:
                continue
            if owner not in (None, question):
                arguments.parser.error(f"{question} takes no {option}; {owner} does")
            if question == "input" and option in ("--device", "--dtype"):
                arguments.parser.error(f"input takes no {option}: it measures the host")
            given[name] = value
    out = arguments.out
    if out:  # a benchmark is too long to fail at its end
        if out.suffix != ".json" or out.is_dir():
            arguments.parser.error(f"--out {out} must be a file, FILE.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(f"--out: the folder {out.parent} is not writable; take another")
    benchmark = importlib.import_module(f"mambaout_jax.benchmarks.{question}")
    if out:  # so that whoever stops it in the middle has its first rows
        given["keep"] = functools.partial(save_json, path=out)
    result = benchmark.run(**(benchmark.QUICK if arguments.quick else {}) | given)
    benchmark.print_table(result)
    for file in benchmark.save(result, out) if out else ():
        print(file)
    return 0
