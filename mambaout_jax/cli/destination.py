# SPDX-License-Identifier: Apache-2.0
"""Files that a command writes: named on the command line, and checked before the work begins."""

import argparse
from pathlib import Path

from mambaout_jax.runtime.files import check_destination


def add_force_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --force, which `check_output` reads.

    Args:
        what: names the file that it replaces.
    """
    parser.add_argument("--force", action="store_true", help=f"replace {what} that is there")


def check_output(arguments: argparse.Namespace, path: Path, suffix: str) -> None:
    """Refuses a file that could not be written, or would replace one without --force.

    A suffix other than `suffix` ends the program with code 2.

    Raises:
        OSError: as `check_destination`.
    """
    if path.suffix != suffix and not path.is_dir():
        named = path.with_suffix(suffix) if path.name else f"result{suffix}"
        arguments.parser.error(f"{path} is to be a {suffix} file; call it {named}")
    check_destination(path, arguments.force)
