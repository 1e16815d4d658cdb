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

Writes DIR/imagenet2012 as ArrayRecord: train with --config.data.source=imagenet
--config.data.path=DIR, or read it with tfds.data_source("imagenet2012", data_dir=DIR). The archives
can be downloaded from image-net.org/download-images. The same command resumes where it was stopped.
Needs: pip install 'mambaout-jax[data]'
"""

_STOPPED = 75  # as for `train`: the same command will do the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `prepare`."""
    parser.add_argument("dataset", choices=("imagenet",))
    parser.add_argument("--train-tar", type=Path, metavar="FILE", help="ILSVRC2012_img_train.tar")
    parser.add_argument("--val-tar", type=Path, metavar="FILE", help="ILSVRC2012_img_val.tar")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="instead of archives: train/ and val/ with a sub-folder per synset (val/ may also "
        "hold the images themselves)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="where to write; needs as much space as the archives",
    )
    parser.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="synset of each validation image, one per line (default: those of "
        "tensorflow_datasets)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept fewer images than ImageNet has"
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="COUNT",
        help="processes that write (default: one per core)",
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the data set; returns the exit code."""
    from mambaout_jax.data.prepare.imagenet import prepare_imagenet

    try:
        prepared = prepare_imagenet(
            arguments.out,
            train_tar=arguments.train_tar,
            val_tar=arguments.val_tar,
            folder=arguments.folder,
            val_labels=arguments.val_labels,
            partial=arguments.partial,
            processes=arguments.processes,
        )
    except KeyboardInterrupt:
        print("stopped; the same command resumes here", file=sys.stderr)
        return _STOPPED
    print(prepared)
    return 0
