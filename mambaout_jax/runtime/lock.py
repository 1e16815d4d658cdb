# SPDX-License-Identifier: Apache-2.0
"""One run per directory: a lock that is believed only as long as its owner lives.

A lock names the process that holds it, and that process renews it. Where the same process numbers
are seen (the same boot of the same machine, the same container) a lock whose process has ended is
stale at once, however it ended. Elsewhere it is stale when it has not been renewed for
`STALE_SECONDS`, and is not renewed while it is watched before it is taken.

`DirectoryLock` is a file. It works on network file systems: creation is exclusive, and ages are
measured by the clock of the file system. `bucket_lock.BucketLock` is an object in a bucket.
"""

import abc
import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

FILE_NAME = "run.lock"
RENEWAL_SECONDS = 10.0
STALE_SECONDS = 120.0  # NFS clients may see a file's time up to 60 seconds late
_WATCH_SECONDS = 3 * RENEWAL_SECONDS
_SETTLING_SECONDS = 0.2

_LOG = logging.getLogger("mambaout_jax")


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that holds a lock, or did.

    Attributes:
        host: name of the machine.
        space: in which process numbers mean the same: the boot and the container.
        pid: process number.
        started: when the process began, in the system's ticks; "" where the system does not tell.
            A number that was given away again is known by it.
        since: when it took the lock, for people.
        token: random, so that no two owners are equal.
    """

    host: str
    space: str
    pid: int
    started: str
    since: str
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """This process, from now on."""
        since, token = time.strftime("%Y-%m-%d %H:%M:%S %z"), secrets.token_hex(8)
        pid = os.getpid()
        return cls(socket.gethostname(), _process_space(), pid, _started(pid) or "", since, token)

    @classmethod
    def read(cls, data: bytes) -> "Owner | None":
        """Who a lock names, from JSON that may say more; None where it is damaged."""
        names = [field.name for field in dataclasses.fields(cls)]
        with contextlib.suppress(ValueError, TypeError, LookupError):
            values = json.loads(data)
            owner = cls(**{name: values[name] for name in names})
            return owner if isinstance(owner.pid, int) and owner.pid > 0 else None
        return None

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None where this cannot be seen from here."""
        if (self.host, self.space) != (socket.gethostname(), _process_space()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's
            pass
        started = _started(self.pid)
        return started is not None and started != self.started


class Standing(NamedTuple):
    """A lock that is there.

    Attributes:
        owner: who it names; None where it is damaged.
        mark: what the kind of lock knows this state of it by.
    """

    owner: Owner | None
    mark: Any


class Lock(abc.ABC):
    """The right to write into a place. One process of a run holds it for all of them.

    Args:
        place: what is locked, for people.
    """

    def __init__(self, place: Path | str):
        self._place = place
        self._owner: Owner | None = None
        self._released = threading.Event()

    def check(self) -> None:
        """Returns where the lock is free or stale. Changes nothing.

        Raises:
            RuntimeError: another run holds it; says which, since when, and what to do.
        """
        self._find_stale()

    def acquire(self) -> None:
        """Takes the lock and keeps it renewed until `release`.

        Raises:
            RuntimeError: another run holds it, as for `check`.
            OSError: the directory cannot be written to.
        """
        while self._owner is None:
            stale, owner = self._find_stale(), Owner.here()
            if self._take(owner, stale):  # else another run was quicker
                self._owner = owner
        threading.Thread(target=self._keep_renewed, daemon=True).start()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        self._released.set()
        if self._owner is not None:
            self._remove(self._owner)
        self._owner = None

    def _find_stale(self) -> Standing | None:
        """A stale lock, None where there is none at all; raises where another run holds it."""
        standing = self._look()
        if standing is None:
            return None
        owner = standing.owner
        ended = None if owner is None else owner.has_ended()
        if ended:
            return standing
        elsewhere = ""
        if ended is None:
            age = self._age(standing)
            if age > STALE_SECONDS:
                return standing
            elsewhere = (
                f". It gave a sign of life {max(age, 0):.0f} s ago; should it have been killed, "
                f"run the command again once that is {STALE_SECONDS:.0f} s ago"
            )
        who = "a run whose lock file cannot be read"
        if owner is not None:
            who = f"process {owner.pid} on {owner.host}, since {owner.since}"
        raise RuntimeError(
            f"{self._place} is in use by {who}: wait until that run has ended, stop it, or "
            f"train into another directory{elsewhere}"
        )

    def _watch(self, stale: Standing) -> None:
        """Waits for what an owner out of sight would do next.

        What looks stale may be young: clocks of machines differ, and a file that NFS 3 has just
        created has for a moment a time that means nothing.
        """
        if not (stale.owner and stale.owner.has_ended()):
            _LOG.warning("a lock in %s looks stale; watching it for a while", self._place)
            time.sleep(_WATCH_SECONDS)

    def _keep_renewed(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            if not self._renew():
                _LOG.warning(
                    "another run has taken %s/%s, where this one still writes",
                    self._place, FILE_NAME,
                )  # fmt: skip
                return

    @abc.abstractmethod
    def _look(self) -> Standing | None:
        """The lock that is there, if there is one."""

    @abc.abstractmethod
    def _age(self, standing: Standing) -> float:
        """Seconds since it was renewed."""

    @abc.abstractmethod
    def _take(self, owner: Owner, stale: Standing | None) -> bool:
        """Makes the lock for `owner`, in the place of a stale one; False where another run did."""

    @abc.abstractmethod
    def _renew(self) -> bool:
        """Gives a sign of life, where that is possible; False where another run has the lock."""

    @abc.abstractmethod
    def _remove(self, owner: Owner) -> None:
        """Removes the lock, if it is still that of `owner`."""


class DirectoryLock(Lock):
    """The right to write into a directory, as a file in it.

    Args:
        directory: made by `acquire` where it is missing.
    """

    def __init__(self, directory: Path):
        super().__init__(directory)
        self._directory, self._path = directory, directory / FILE_NAME

    def acquire(self) -> None:
        """As for every lock; makes the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        super().acquire()

    def _look(self) -> Standing | None:
        with contextlib.suppress(FileNotFoundError):
            try:
                with self._path.open("rb") as file:  # which asks a server of NFS for what is new
                    return Standing(Owner.read(file.read()), os.fstat(file.fileno()).st_mtime)
            except OSError:  # another user's, or removed on another machine
                return Standing(None, self._path.stat().st_mtime)
        return None

    def _age(self, standing: Standing) -> float:
        with tempfile.TemporaryFile(dir=self._directory) as file:
            return os.fstat(file.fileno()).st_mtime - standing.mark

    def _take(self, owner: Owner, stale: Standing | None) -> bool:
        if stale is not None:
            self._watch(stale)
            if self._look() != stale:
                return False
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            self._create(owner)
        # Another run may have found the same stale lock, and removed ours in its place.
        time.sleep(_SETTLING_SECONDS if stale is not None else 0)
        return self._read() == owner

    def _renew(self) -> bool:
        if self._read() not in (self._owner, None):
            return False
        with contextlib.suppress(OSError):  # the next renewal may succeed
            os.utime(self._path)
        return True

    def _remove(self, owner: Owner) -> None:
        if self._read() == owner:
            self._path.unlink(missing_ok=True)

    def _create(self, owner: Owner) -> None:
        with self._path.open("xb", buffering=0) as file:
            try:
                file.write(json.dumps(dataclasses.asdict(owner)).encode())
                os.fsync(file.fileno())  # where a network file system tells that it is full
            except OSError as error:
                self._path.unlink(missing_ok=True)
                raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _read(self) -> Owner | None:
        """Who the file names; None where it is damaged or not there."""
        with contextlib.suppress(OSError):
            return Owner.read(self._path.read_bytes())
        return None


def _process_space() -> str:
    """The boot of the machine and the container; "" where the system does not tell."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; "ended" for one that only waits to be buried.

    None where the system does not tell.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "ended" if fields[0] in "ZX" else fields[19]
