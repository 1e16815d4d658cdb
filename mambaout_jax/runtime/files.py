# SPDX-License-Identifier: Apache-2.0
"""The one way to write a file that is never half there, and the check before it is made."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def check_destination(path: Path | str, force: bool = False) -> None:
    """Checks, before the work begins, that its result can be written to `path`.

    Nothing is made: whoever writes the file finds its folder there.

    Args:
        path: file to be written.
        force: whether it may replace a file.

    Raises:
        FileExistsError: a file is there, and `force` is False.
        IsADirectoryError, NotADirectoryError, FileNotFoundError, PermissionError, OSError: no file
            can be written under this name; the message says why.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'result'}")
    if not folder.is_dir():
        if any(part.exists() and not part.is_dir() for part in path.parents):
            raise NotADirectoryError(f"{path} cannot be written: {folder} is not a folder")
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {folder}; make it")
    if path.exists() and not path.is_file():  # a pipe or a device, which cannot be replaced
        raise OSError(f"{path} is not an ordinary file; name another one")
    if os.path.lexists(path) and not force:
        raise FileExistsError(f"{path} exists; name another file, or replace it with --force")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: nothing can be made in {folder}")


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path to write to; at the end what is there takes the place of `path`, in one step.

    Readers find the whole old file or the whole new one, and so does the next run if this one is
    killed. If the block raises, the old file stays and what was written is removed.

    Args:
        path: file to write, in a folder that exists. Only one process may write it at a time.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name without the contents
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path | str, text: str) -> None:
    """Replaces the file `path` by `text`, in UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Replaces the file `path` by `value` as indented JSON.

    Raises:
        TypeError: `value` is not JSON-able. The old file stays.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")
