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

imagenet writes DIR/imagenet2012 as ArrayRecord: train with --config.data.source=imagenet
--config.data.path=DIR, or read it with tfds.data_source("imagenet2012", data_dir=DIR). The archives
can be downloaded from image-net.org/download-images.

coco reads annotations/instances_train2017.json and instances_val2017.json with train2017/ and
val2017/, unpacked from cocodataset.org/#download, or any set of that form, and writes
DIR/coco_instances: train with --config.data.source=coco --config.data.path=DIR.

The same command resumes where it was stopped.
Needs: pip install 'mambaout-jax[data]'
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
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="imagenet: instead of archives, train/ and val/ with a sub-folder per synset (val/ "
        "may also hold the images themselves); coco: the set as it was unpacked",
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
        "--partial", action="store_true", help="imagenet: accept fewer images than it has"
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="COUNT",
        help="processes that write (default: one per core)",
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the data set; returns the exit code."""
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

    _check_folder_alone(arguments)
    return prepare_coco(arguments.out, arguments.folder, processes=arguments.processes)


def _check_folder_alone(arguments: argparse.Namespace) -> None:
    """Ends the program where a set that comes as a folder is given otherwise."""
    others = {
        "--train-tar": arguments.train_tar,
        "--val-tar": arguments.val_tar,
        "--val-labels": arguments.val_labels,
        "--partial": arguments.partial,
    }
    given = [name for name, value in others.items() if value]
    if given:
        arguments.parser.error(f"{given[0]} is for imagenet; {arguments.dataset} needs --folder")
    if arguments.folder is None:
        arguments.parser.error(f"{arguments.dataset} needs --folder DIR, the set as unpacked")


# By the word of the command line.
_PREPARE = {"imagenet": _prepare_imagenet, "coco": _prepare_coco}
