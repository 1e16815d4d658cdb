# SPDX-License-Identifier: Apache-2.0
"""A run in a bucket: it works in a local folder, which is mirrored there.

The bucket is the truth. A run that begins or resumes fills the folder from it, and a thread brings
the bucket up to date while the run writes. After a kill at any moment the bucket holds a state that
the same command resumes from: small files go before checkpoints, so that the metrics are at least
as new; of a checkpoint its meta data goes last and is deleted first, and one without is none.
"""

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.bucket_lock import BucketLock
from mambaout_jax.runtime.lock import FILE_NAME as LOCK

_LOG = logging.getLogger("mambaout_jax")
_PAUSE_SECONDS = 5.0
_LAST_ATTEMPTS = 3
CHECKPOINTS = "checkpoints"
_META = "meta/data.json"  # of a checkpoint: without it there is none
_LINKS = ".uploading"
_CHECKPOINT_FILE = re.compile(rf"{CHECKPOINTS}/(0|[1-9]\d*)/(.+)")
# What a run reads of its own; it only adds to the other files, such as those of TensorBoard.
SMALL_FILE = re.compile(r"[^/]+\.(json|jsonl|txt)|metrics\.jsonl\.[^/]+|wandb_id")
_PASSING = re.compile(r"\.(part|tmp)$|\.orbax-checkpoint-tmp")
_UPLOADS = {"gs": "gcloud storage rsync --recursive", "s3": "aws s3 sync"}

_Stamp = tuple[int, int, int]  # of a file: another one, or one that was written to, has another


class Mirror:
    """Keeps what is below an address like a local folder. A context manager.

    Entering it fills the folder; leaving it brings the bucket up to date for the last time.

    Args:
        lock: held, here.
        folder: whatever is in it is removed.
    """

    def __init__(self, bucket: Bucket, lock: BucketLock, folder: Path):
        self.folder = folder
        self._bucket, self._lock = bucket, lock
        self._stamps: dict[str, _Stamp] = {}  # of what the bucket has, when it was read
        self._remote: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._told: set[str] = set()

    def __enter__(self):
        self.fill()
        self._thread.start()
        return self

    def __exit__(self, _kind, error: BaseException | None, _trace):
        self._ended.set()
        self._thread.join()
        try:
            self._sync_persistently()
        except (BucketError, OSError) as failure:
            shutil.rmtree(self.folder / _LINKS, ignore_errors=True)
            kept = _free_name(self.folder)
            self.folder.rename(kept)
            address = self._bucket.address
            upload = f"{_UPLOADS[address.partition('://')[0]]} {kept} {address}"
            before = f"{error}. Besides, t" if str(error or "") else "T"
            raise BucketError(
                f"{before}he last state of this run could not be uploaded: {failure}. It is in "
                f"{kept}: upload it with `{upload}`, then run the same command again; without that "
                "the run resumes from the older state in the bucket"
            ) from error
        shutil.rmtree(self.folder, ignore_errors=True)

    def fill(self) -> None:
        """Fills the folder with the small files and the complete checkpoints of the bucket.

        Halves of checkpoints that a kill has left in the bucket are removed there.
        """
        _make_anew(self.folder)
        names = usable_names(self._bucket, witness=LOCK)
        complete = set(complete_steps(names))
        for name in names:
            found = _CHECKPOINT_FILE.fullmatch(name)
            if found and int(found[1]) not in complete:
                self._bucket.delete(name)
            elif found or (SMALL_FILE.fullmatch(name) and name != LOCK):
                if download(self._bucket, name, self.folder):
                    self._stamps[name] = _stamp(self.folder / name)
                    self._remote.add(name)
            elif name.startswith(f"{CHECKPOINTS}/"):
                # Set aside, and not wanted here; but its name is taken.
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)

    def sync(self) -> None:
        """Brings the bucket up to date with the folder.

        Raises:
            BucketError: it cannot be written, or another run has taken the lock.
        """
        links = self.folder / _LINKS
        shutil.rmtree(links, ignore_errors=True)
        # Before the metrics are read: they are as new as these checkpoints, or newer. Links, since
        # the run may delete a checkpoint while it is uploaded.
        steps = self._link_checkpoints(links)
        for name in self._small_files():
            self._upload(name, self.folder / name)
        for step in reversed(steps):
            names = sorted(_files(links / str(step)), key=lambda name: name == _META)
            for name in names:
                self._upload(f"{CHECKPOINTS}/{step}/{name}", links / str(step) / name)
        # Only what a newer checkpoint makes superfluous, whatever has become of the folder.
        for step in complete_steps(self._remote):
            if steps and step < steps[-1] and step not in steps:
                self._delete_checkpoint(step)
        shutil.rmtree(links, ignore_errors=True)

    def _keep_up(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            try:
                self.sync()
            except BucketError as error:
                self._tell(f"{error}. The run goes on and tries again")
                if self._lock.lost:
                    return
            except OSError as error:
                self._tell(f"{self._bucket.address} is not up to date: {error}")

    def _sync_persistently(self) -> None:
        for attempt in range(_LAST_ATTEMPTS):
            try:
                self.sync()
                return
            except (BucketError, OSError):
                if self._lock.lost or attempt + 1 == _LAST_ATTEMPTS:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _tell(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            _LOG.warning("%s", problem)

    def _link_checkpoints(self, links: Path) -> list[int]:
        """Links the complete checkpoints of the folder; returns their steps, ascending."""
        steps = []
        for path in sorted((self.folder / CHECKPOINTS).glob("*")):
            if _CHECKPOINT_FILE.fullmatch(f"{CHECKPOINTS}/{path.name}/{_META}"):
                try:
                    shutil.copytree(path, links / path.name, copy_function=os.link)
                except OSError:
                    if path.is_dir():
                        raise
                    continue  # the run has deleted it
                steps.append(int(path.name))
        return sorted(steps)

    def _small_files(self) -> list[str]:
        """All files but those of checkpoints; what was set aside is among them."""
        return [
            name
            for name in _files(self.folder)
            if not _CHECKPOINT_FILE.fullmatch(name) and name != LOCK and not _PASSING.search(name)
        ]

    def _upload(self, name: str, path: Path) -> None:
        """Writes a file where the bucket does not have it as it is."""
        try:
            stamp = _stamp(path)  # first: what is added later is then seen to be new
            if self._stamps.get(name) == stamp:
                return
            data = path.read_bytes()
        except FileNotFoundError:  # it has gone meanwhile
            return
        self._lock.confirm()
        found = _CHECKPOINT_FILE.fullmatch(name)
        if found and f"{CHECKPOINTS}/{found[1]}/{_META}" in self._remote:
            self._delete_checkpoint(int(found[1]))  # another one of this step, that was set aside
        self._bucket.write(name, data)
        self._stamps[name] = stamp
        self._remote.add(name)

    def _delete_checkpoint(self, step: int) -> None:
        prefix = f"{CHECKPOINTS}/{step}/"
        names = [name for name in self._remote if name.startswith(prefix)]
        for name in sorted(names, key=lambda name: name != prefix + _META):
            self._lock.confirm()
            self._bucket.delete(name)
            self._remote.discard(name)
            self._stamps.pop(name, None)


def _make_anew(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)


def _free_name(folder: Path) -> Path:
    number = 1
    while (path := folder.with_name(f"{folder.name}_not_uploaded_{number}")).exists():
        number += 1
    return path


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps of the checkpoints of which nothing is missing, ascending."""
    found = (_CHECKPOINT_FILE.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match and match[2] == _META)


def usable_names(bucket: Bucket, witness: str) -> list[str]:
    """The names that can be those of files; see `Bucket.names`.

    Consoles show folders by empty objects whose names end with a slash.
    """
    names = bucket.names(witness)
    return [name for name in names if not {"", ".", ".."} & set(name.split("/"))]


def download(bucket: Bucket, name: str, folder: Path) -> bool:
    """Writes an object to a file of its name in a folder; False where it has gone meanwhile."""
    data, path = bucket.read(name).data, folder / name
    if data is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return True


def _files(folder: Path) -> Iterator[str]:
    """Ordinary files below a folder, by their names relative to it with "/"."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != _LINKS]
        for name in names:
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
