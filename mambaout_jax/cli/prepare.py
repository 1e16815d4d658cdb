# SPDX-License-Identifier: Apache-2.0
"""`mambaout prepare`: write a data set in the form that training reads best."""

import argparse
import sys
from pathlib import Path

from mambaout_jax.cli.errors import positive

SUMMARY = "write a data set in the form that training reads best"

EXAMPLES = """
examples:
  mambaout prepare imagenet --train-tar ILSVRC2012_img_train.tar --val-tar ILSVRC2012_img_val.tar \\
    --out /data
  mambaout prepare imagenet --folder /data/imagenet --out /data
  mambaout prepare imagenet --val-tar ILSVRC2012_img_val.tar --out /data/validation
  mambaout prepare coco --folder /data/coco --out /data
  mambaout prepare ade20k --zip ADEChallengeData2016.zip --out /data

imagenet writes DIR/imagenet2012 as ArrayRecord: train with --config.data.source=imagenet
--config.data.path=DIR, or read it with tfds.data_source("imagenet2012", data_dir=DIR). The archives
can be downloaded from image-net.org/download-images.

coco reads annotations/instances_train2017.json and instances_val2017.json with train2017/ and
val2017/, unpacked from cocodataset.org/#download, or any set of that form, and writes
DIR/coco_instances: train with --config.data.source=coco --config.data.path=DIR.

ade20k reads data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, 150 classes of pixels,
or a folder of its form, and writes DIR/ade20k: train with --config.task=segmentation
--config.data.source=ade20k --config.data.path=DIR.

The same command resumes where it was stopped.
imagenet needs: pip install 'mambaout-jax[data]'
"""

_STOPPED = 75  # as for `train`: the same command will do the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `prepare`."""
    parser.add_argument("dataset", choices=tuple(_PREPARE))
    parser.add_argument(
        "--train-tar", type=Path, metavar="FILE", help="imagenet: ILSVRC2012_img_train.tar"
    )
    parser.add_argument(
        "--val-tar", type=Path, metavar="FILE", help="imagenet: ILSVRC2012_img_val.tar"
    )
    parser.add_argument("--zip", type=Path, metavar="FILE", help="ade20k: ADEChallengeData2016.zip")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="imagenet: instead of archives, train/ and val/ with a sub-folder per synset (val/ "
        "may also hold the images themselves); coco: the set as it was unpacked; ade20k: instead "
        "of the archive, images/ and annotations/",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="where to write; needs as much space as the images",
    )
    parser.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="imagenet: synset of each validation image, one per line (default: those of "
        "tensorflow_datasets)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="imagenet, ade20k: accept another number of images than it has",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="COUNT",
        help="processes that write (default: one per core)",
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the data set; returns the exit code."""
    _check_options(arguments)
    try:
        prepared = _PREPARE[arguments.dataset](arguments)
    except KeyboardInterrupt:
        print("stopped; the same command resumes here", file=sys.stderr)
        return _STOPPED
    print(prepared)
    return 0


def _prepare_imagenet(arguments: argparse.Namespace) -> object:
    from mambaout_jax.data.prepare.imagenet import prepare_imagenet

    return prepare_imagenet(
        arguments.out,
        train_tar=arguments.train_tar,
        val_tar=arguments.val_tar,
        folder=arguments.folder,
        val_labels=arguments.val_labels,
        partial=arguments.partial,
        processes=arguments.processes,
    )


def _prepare_coco(arguments: argparse.Namespace) -> object:
    from mambaout_jax.data.prepare.coco import prepare_coco

    if not arguments.folder:
        arguments.parser.error("coco needs --folder DIR, the set as unpacked")
    return prepare_coco(arguments.out, arguments.folder, processes=arguments.processes)


def _prepare_ade20k(arguments: argparse.Namespace) -> object:
    from mambaout_jax.data.prepare.ade20k import prepare_ade20k

    return prepare_ade20k(
        arguments.out,
        archive=arguments.zip,
        folder=arguments.folder,
        partial=arguments.partial,
        processes=arguments.processes,
    )


def _check_options(arguments: argparse.Namespace) -> None:
    """Ends the program where an option is given that the set does not take."""
    taken = _OPTIONS[arguments.dataset]
    for option in dict.fromkeys(option for options in _OPTIONS.values() for option in options):
        if option not in taken and getattr(arguments, option):
            takers = [dataset for dataset, options in _OPTIONS.items() if option in options]
            sources = [_flag(name) for name in taken if name not in ("partial", "val_labels")]
            arguments.parser.error(
                f"{_flag(option)} is for {' and '.join(takers)}; {arguments.dataset} needs "
                f"{' or '.join(sources)}"
            )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


# By the word of the command line: who does it, and what else than --out and --processes it takes.
_PREPARE = {"imagenet": _prepare_imagenet, "coco": _prepare_coco, "ade20k": _prepare_ade20k}
_OPTIONS = {
    "imagenet": ("train_tar", "val_tar", "folder", "val_labels", "partial"),
    "coco": ("folder",),
    "ade20k": ("zip", "folder", "partial"),
}
