# SPDX-License-Identifier: Apache-2.0
"""What every preparation of a data set does around its shards, so that a kill costs nothing.

A set is written to `<version>.incomplete` and gets its final name when everything is there. Each
shard has a temporary name until it is complete, and is then read back. The same command resumes:
what is complete is checked, of a finished set too, and only what is missing is written.
`source.json` says what the folder was begun from; anything else is refused.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mambaout_jax.data.workers import begin_worker

SHARD_BYTES = 128 * 2**20  # of image files: seconds of work, so that little is lost by a kill
_SOURCE_FILE = "source.json"


@runtime_checkable
class Member(Protocol):
    """What becomes one record."""

    @property
    def name(self) -> str:
        """File name, by which records are put in order."""
        ...

    @property
    def path(self) -> str:
        """The file or the archive that it is in, for messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes, before they are written."""
        ...


_M = TypeVar("_M", bound=Member)
_Result = TypeVar("_Result")


def check_out(out: Path) -> None:
    """Checks, before sources are listed, that a folder can be made there.

    Raises:
        NotADirectoryError, PermissionError: it cannot.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"--out {out} cannot be made: {there} is a file; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {out} cannot be written: nothing can be made in {there}")


def in_order(members: list[_M], dataset: str) -> list[_M]:
    """The members by a hash of their names, so that every shard is a random sample.

    Args:
        members: are sorted in place.
        dataset: what messages call the set.

    Raises:
        ValueError: two have one name.
    """
    members.sort(key=lambda member: hashlib.sha256(os.fsencode(member.name)).digest())
    for one, other in itertools.pairwise(members):
        if one.name == other.name:
            raise ValueError(
                f"{one.name} is there twice, in {one.path} and {other.path}; {dataset}'s file "
                "names differ"
            )
    return members


def check_sizes(split: str, members: Sequence[Member]) -> None:
    """Raises ValueError where files are empty."""
    empty = [member for member in members if member.size == 0]
    if empty:
        raise ValueError(
            f"{len(empty)} of the {len(members)} images of the {split} split are empty files, one "
            f"is {empty[0].name} of {empty[0].path}; fetch them again"
        )


def claim(work: Path, images: Mapping[str, int], shard_bytes: int, contents: Iterable[str]) -> None:
    """Creates the folder, or checks that it was begun from the same images.

    Args:
        work: the folder.
        images: their number, by split.
        shard_bytes: bytes of image files in one shard.
        contents: one line for each image; another line is another source.

    Raises:
        ValueError: the folder was made from something else, or by something else.
    """
    digest = hashlib.sha256()
    for line in contents:
        digest.update(f"{line}\n".encode())
    source = {"images": dict(images), "shard_bytes": shard_bytes, "sha256": digest.hexdigest()}
    file = work / _SOURCE_FILE
    if work.exists() and not file.exists() and any(work.iterdir()):
        raise ValueError(
            f"{work} exists and was not made by this command; choose another --out, or remove it"
        )
    if file.exists():
        begun = _read_source(file)
        if begun != source:
            raise ValueError(
                f"{work} was made from another source (of {begun['images']} images, now "
                f"{source['images']}); give that one, choose another --out, or remove the folder"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(source))
    temporary.replace(file)


def share_out(
    members: list[_M], shard_bytes: int, path: Callable[[int, int], Path]
) -> dict[Path, list[_M]]:
    """The members of each shard.

    Args:
        members: of one split, in their order.
        shard_bytes: their bytes in one shard, on average.
        path: of a shard, by its number and the number of shards.
    """
    size = sum(member.size for member in members)
    count = min(math.ceil(size / shard_bytes), len(members))
    bounds = [round(len(members) * index / count) for index in range(count + 1)]
    return {
        path(index, count): members[start:stop]
        for index, (start, stop) in enumerate(itertools.pairwise(bounds))
    }


def check_space(work: Path, shards: Mapping[str, Mapping[Path, Sequence[Member]]]) -> None:
    """Removes what killed processes left, and checks that the disk holds what is missing.

    Raises:
        ValueError: it does not.
    """
    for leftover in work.glob("*.tmp"):
        leftover.unlink()
    needed = sum(
        member.size
        for of_split in shards.values()
        for path, members in of_split.items()
        if not path.exists()
        for member in members
    )
    free = shutil.disk_usage(work).free
    if needed > free:
        raise ValueError(
            f"{work} needs {needed / 1e9:.1f} GB more, and its disk has {free / 1e9:.1f} GB free; "
            "make room, or choose another --out"
        )


def write_shards(
    shards: Mapping[str, Mapping[Path, list[_M]]],
    write: Callable[[Path, list[_M]], None],
    check: Callable[[Path, list[_M]], _Result],
    progress: Progress,
    processes: int | None,
) -> dict[str, list[_Result]]:
    """Writes the missing shards and checks all, in processes.

    Args:
        shards: members by path, by split.
        write: makes a shard of these members; a function of a module.
        check: reads a shard back, and raises where it does not hold these members; likewise.
        progress: shows how far it is.
        processes: their number; None: one per core.

    Returns:
        What `check` returns, by split and in the order of the shards.
    """
    tasks = {
        split: progress.add_task(f"{split}: writing", total=sum(map(len, of_split.values())))
        for split, of_split in shards.items()
    }
    # Spawned: a forked process would inherit locks of the threads of ArrayRecord and the progress
    # bar.
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=begin_worker
    )
    try:
        futures = {
            split: [
                executor.submit(_write_and_check, write, check, path, members)
                for path, members in of_split.items()
            ]
            for split, of_split in shards.items()
        }
        sizes = {
            future: (split, len(members))
            for split, of_split in shards.items()
            for future, members in zip(futures[split], of_split.values(), strict=True)
        }
        for future in as_completed(sizes):
            future.result()  # the first error ends it
            split, count = sizes[future]
            progress.advance(tasks[split], count)
    finally:
        executor.shutdown(cancel_futures=True)
    return {split: [future.result() for future in found] for split, found in futures.items()}


def bar() -> Progress:
    """A bar on the standard error if that is a terminal, otherwise nothing."""
    console = Console(stderr=True)
    columns = Progress.get_default_columns()[:2]
    columns += (MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _write_and_check(
    write: Callable[[Path, list[_M]], None],
    check: Callable[[Path, list[_M]], _Result],
    path: Path,
    members: list[_M],
) -> _Result:
    if not path.exists():
        write(path, members)
    return check(path, members)


def _read_source(file: Path) -> dict[str, Any]:
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
        begun["images"].items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}) and does not say what its folder "
            "was made from; remove the folder, or choose another --out"
        ) from error
    return begun
