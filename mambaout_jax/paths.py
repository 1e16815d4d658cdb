# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them."""

import os
import re
from pathlib import Path

# Of at least two letters: one is a drive. A `Path` keeps one slash of the two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_BUCKETS = ("gs", "s3")


def local_path(path: str | Path) -> Path:
    """The path that is meant: `~` is the home directory.

    Raises:
        ValueError: it is an address such as gs://bucket/run, or a home directory that is not there.
    """
    text = os.path.expanduser(path)
    address = _ADDRESS.fullmatch(text)
    if address:
        scheme, rest = address.groups()
        allowed = (
            "only the working directory of a run may be in a bucket: download it, or "
            if scheme.lower() in _BUCKETS
            else "files are read and written only at paths of this machine: "
        )
        raise ValueError(
            f"{scheme}://{rest} is an address, and {allowed}mount it and give the path of the "
            "mount, or use a local folder and copy the files afterwards"
        )
    if text.startswith("~"):
        raise ValueError(
            f"{text}: no home directory is known for {text.partition('/')[0]}; write the path out"
        )
    return Path(text)


def in_bucket(path: str | Path) -> bool:
    """Whether it is an address that begins with gs:// or s3://, of whatever."""
    address = _ADDRESS.fullmatch(str(path))
    return address is not None and address[1].lower() in _BUCKETS


def workdir_path(path: str | Path) -> Path | str:
    """Where a run is kept: a path, or as a string an address such as gs://bucket/runs/a.

    Addresses begin with gs:// (Google Cloud Storage) or s3:// (Amazon S3, and what speaks its
    protocol), and name a folder in the bucket.

    Raises:
        ValueError: it is an address of another kind or only a bucket, or as for `local_path`.
    """
    address = _ADDRESS.fullmatch(str(path))
    if not address:
        return local_path(path)
    if not in_bucket(path):
        raise ValueError(
            f"{address[1]}://{address[2]} is no address of a working directory: those are paths of "
            "this machine, gs://bucket/folder and s3://bucket/folder; mount it and give the path "
            "of the mount, or use a local folder and copy the files afterwards"
        )
    scheme, (bucket, *folders) = address[1].lower(), re.split("/+", address[2].rstrip("/"))
    if not folders:
        raise ValueError(
            f"{scheme}://{bucket} is a whole bucket; name a folder in it for the run, such as "
            f"{scheme}://{bucket or 'bucket'}/runs/first"
        )
    return f"{scheme}://{'/'.join((bucket, *folders))}"
