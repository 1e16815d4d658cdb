# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them."""

import os
import re
from pathlib import Path

# Of at least two letters: one is a drive. A `Path` keeps one slash of the two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def local_path(path: str | Path) -> Path:
    """The path that is meant: `~` is the home directory.

    Raises:
        ValueError: it is an address such as gs://bucket/run, or a home directory that is not there.
    """
    text = os.path.expanduser(path)
    address = _ADDRESS.fullmatch(text)
    if address:
        scheme, rest = address.groups()
        raise ValueError(
            f"{scheme}://{rest} is an address, and files are read and written only at paths of "
            "this machine: mount it and give the path of the mount, or use a local folder and copy "
            "the files afterwards"
        )
    if text.startswith("~"):
        raise ValueError(
            f"{text}: no home directory is known for {text.partition('/')[0]}; write the path out"
        )
    return Path(text)
