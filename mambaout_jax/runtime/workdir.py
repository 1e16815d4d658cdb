# SPDX-License-Identifier: Apache-2.0
"""Where a run is kept, as a local folder: a path is one, an address in a bucket becomes one."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.bucket_lock import BucketLock
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.mirror import (
    CHECKPOINTS,
    SMALL_FILE,
    Mirror,
    complete_steps,
    download,
    usable_names,
)


@contextlib.contextmanager
def run_folder(workdir: Path | str) -> Iterator[Path]:
    """The local folder in which a run writes; what it has written is in its workdir at the end.

    Args:
        workdir: a path, which is the folder itself, or an address in a bucket; see
            `paths.workdir_path`. At an address no other run may be writing; it is locked meanwhile.

    Raises:
        BucketError: the bucket cannot be read or written. At the end it says where the files are.
        RuntimeError: another run is writing there.
        ValueError: it is an address, and the run has several processes.
    """
    if isinstance(workdir, Path):
        yield workdir
        return
    _check_one_process(workdir)
    bucket = Bucket(workdir)
    lock = BucketLock(bucket)
    lock.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(_release, lock)
        mirror = Mirror(bucket, lock, _staging_folder(workdir))
        stack.enter_context(mirror)
        stack.enter_context(_named_by_address(workdir, mirror.folder))
        yield mirror.folder


@contextlib.contextmanager
def run_copy(workdir: Path | str, *, checkpoint: bool = True) -> Iterator[Path]:
    """A local folder with what is read of a run: its small files and its newest sound checkpoint.

    Args:
        workdir: a path, which is the folder itself, or an address in a bucket, of which a copy is
            made that goes at the end.
        checkpoint: whether one is read, too.

    Raises:
        BucketError: the bucket cannot be read.
        FileNotFoundError: there is no run at the address.
        ValueError: it is an address, and the program has several processes.
    """
    if isinstance(workdir, Path):
        yield workdir
        return
    _check_one_process(workdir)
    bucket = Bucket(workdir)
    config = "config.json"
    if bucket.read(config).data is None:
        raise FileNotFoundError(
            f"{workdir}/{config} is missing; the address should be the --workdir of a training run"
        )
    with tempfile.TemporaryDirectory(prefix="mambaout_run_") as name:
        folder = Path(name)
        with _named_by_address(workdir, folder):
            names = usable_names(bucket, witness=config)
            for name in filter(SMALL_FILE.fullmatch, names):
                download(bucket, name, folder)
            if checkpoint:
                _download_checkpoint(bucket, names, folder)
            yield folder


def _check_one_process(address: str) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"{address} is in a bucket, and this run has {jax.process_count()} processes, whose "
            "checkpoints need a folder that all of them see: mount the bucket on every machine "
            "(gcsfuse, mountpoint-s3) and give the path of the mount"
        )


def _release(lock: BucketLock) -> None:
    with contextlib.suppress(BucketError):  # it becomes stale
        lock.release()


@contextlib.contextmanager
def _named_by_address(address: str, folder: Path) -> Iterator[None]:
    """What errors say of the local folder, they say of the address: the folder will be gone."""
    try:
        yield
    except BaseException as error:
        error.args = tuple(
            arg.replace(str(folder), address) if isinstance(arg, str) else arg for arg in error.args
        )
        for name, value in vars(error).items():
            if isinstance(value, Path) and value.is_relative_to(folder):
                setattr(error, name, f"{address}/{value.relative_to(folder)}")
        raise


def _staging_folder(address: str) -> Path:
    """The same for every run at an address, so that what a killed one has left is found again."""
    short = re.sub(r"[^A-Za-z0-9]+", "_", address)[-40:]
    digest = hashlib.sha256(f"{Path.home()} {address}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"mambaout_run_{short}_{digest}"


def _download_checkpoint(bucket: Bucket, names: list[str], folder: Path) -> None:
    """The newest; older ones, too, where those before cannot be read."""
    for step in reversed(complete_steps(names)):
        for name in names:
            if name.startswith(f"{CHECKPOINTS}/{step}/"):
                download(bucket, name, folder)
        with contextlib.suppress(RuntimeError):
            read_checkpoint(folder / CHECKPOINTS)
            return
