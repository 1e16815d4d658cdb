# SPDX-License-Identifier: Apache-2.0
"""ImageNet from its original archives to ArrayRecord shards that TensorFlow Datasets also reads.

TensorFlow is not needed. Images are stored byte for byte as they came, except those that are not
grey or RGB JPEG files (in ImageNet 22 CMYK files and one PNG): they become RGB JPEG. Every image is
decoded once, so that a damaged one is found here and not in a training run.

Images are stored in the order of a hash of their names: every shard is a random sample of the
classes, and the same images give the same shards, byte for byte, from archives or from folders.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mambaout_jax.data.prepare.archives import (
    Member,
    folder_members,
    train_members,
    validation_labels,
    validation_members,
)
from mambaout_jax.data.prepare.shards import (
    VERSION,
    check_shard,
    shard_path,
    write_metadata,
    write_shard,
)
from mambaout_jax.data.sets.imagenet import (
    DATASET,
    SPLIT_SIZES,
    require_data_packages,
    split_folder,
)
from mambaout_jax.data.workers import begin_worker

SHARD_BYTES = 128 * 2**20  # of image files: seconds of work, so that little is lost by a kill
_CONVERTED = {"train": 23, "validation": 0}  # 22 CMYK, 1 PNG
_SOURCE_FILE = "source.json"

_logger = logging.getLogger("mambaout_jax")

_Shards = dict[Path, list[Member]]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare_imagenet` made.

    Attributes:
        folder: where the shards are.
        images, shards: their numbers, by split.
        converted: file names of the images that were not grey or RGB JPEG files, by split.
    """

    folder: Path
    images: dict[str, int]
    shards: dict[str, int]
    converted: dict[str, list[str]]

    def __str__(self) -> str:
        rows = [
            f"{split}: {count:,} images in {self.shards[split]:,} shards, "
            f"{len(self.converted[split])} converted to RGB JPEG"
            for split, count in self.images.items()
        ]
        return "\n".join(
            [
                str(self.folder),
                *rows,
                "train on it with --config.data.source=imagenet "
                f"--config.data.path={self.folder.parent.parent}",
            ]
        )


def prepare_imagenet(
    out: Path,
    *,
    train_tar: Path | None = None,
    val_tar: Path | None = None,
    folder: Path | None = None,
    val_labels: Path | None = None,
    partial: bool = False,
    processes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Prepared:
    """Writes `out`/imagenet2012/5.1.0. The same call resumes where a killed one stopped.

    Each shard has a temporary name until it is complete, and is then read back to check the order,
    names, labels and image format. The folder gets its final name only when everything is there.
    Called again on a finished folder, the function checks every shard again. Archives are read in
    the order of the shards, which jumps between images: they should be on a disk without moving
    parts.

    Args:
        out: the data_dir of TensorFlow Datasets; needs as much space as the archives.
        train_tar, val_tar: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; without one of them
            its split is not written.
        folder: used instead of archives: train/ and val/ with a sub-folder per synset; val/ may
            also hold its images directly.
        val_labels: file with the synset of each validation image (`archives.validation_labels`).
        partial: whether to accept fewer images than ImageNet has.
        processes: number of worker processes; None: one per core.
        shard_bytes: bytes of image files in one shard, on average.

    Raises:
        FileNotFoundError, ValueError: a source is missing, incomplete, damaged, too large for the
            disk, or not the one that the folder was begun with.
        UnreadableImageError: an image cannot be decoded.
        ModuleNotFoundError: the packages of mambaout-jax[data] are not installed.
    """
    require_data_packages()
    finished = out / DATASET / VERSION
    unfinished = finished.with_name(f"{VERSION}.incomplete")
    work = finished if finished.exists() else unfinished
    with _progress() as progress:
        sources = _sources(train_tar, val_tar, folder, val_labels)
        members = _list_members(sources, progress, partial)
        _claim(work, members, shard_bytes)
        shards = {split: _shards(work, split, members[split], shard_bytes) for split in members}
        _check_space(work, shards)
        checks = _write_shards(shards, progress, processes)
    lengths = {split: [len(part) for part in shards[split].values()] for split in shards}
    num_bytes = {split: sum(size for size, _ in checks[split]) for split in checks}
    write_metadata(work, lengths, num_bytes)
    if work == unfinished:
        work.rename(finished)
    converted = {
        split: sorted(name for _, names in checks[split] for name in names) for split in checks
    }
    if not partial:
        _report_converted(converted)
    images = {split: sum(lengths[split]) for split in lengths}
    return Prepared(finished, images, {split: len(lengths[split]) for split in lengths}, converted)


def _report_converted(converted: dict[str, list[str]]) -> None:
    for split, names in converted.items():
        if len(names) != _CONVERTED[split]:
            _logger.warning(
                "%d %s images were not grey or RGB JPEG files and were converted; in ImageNet "
                "there are %d: %s",
                len(names),
                split,
                _CONVERTED[split],
                names,
            )


def _sources(
    train_tar: Path | None, val_tar: Path | None, folder: Path | None, val_labels: Path | None
) -> dict[str, Iterator[Member]]:
    if bool(folder) == bool(train_tar or val_tar):
        raise ValueError("give --train-tar and --val-tar (or one of them), or --folder")
    if folder:
        found = {
            split: folder_members(folder, split, val_labels)
            for split in SPLIT_SIZES
            if split_folder(folder, split)
        }
        if not found:
            raise FileNotFoundError(
                f"--folder {folder} holds neither train/ nor val/; it needs one of them, with a "
                "sub-folder of images per synset (n01440764, ...)"
            )
        return found
    found = {}
    if train_tar:
        found["train"] = train_members(train_tar)
    if val_tar:
        found["validation"] = validation_members(val_tar, validation_labels(val_labels))
    return found


def _list_members(
    sources: dict[str, Iterator[Member]], progress: Progress, partial: bool
) -> dict[str, list[Member]]:
    members = {}
    for split, found in sources.items():
        listed = progress.track(found, SPLIT_SIZES[split], description=f"{split}: listing")
        members[split] = _in_order(list(listed))
        _check_count(split, len(members[split]), partial)
    return members


def _in_order(members: list[Member]) -> list[Member]:
    members.sort(key=lambda member: hashlib.sha256(os.fsencode(member.name)).digest())
    for one, other in itertools.pairwise(members):
        if one.name == other.name:
            raise ValueError(
                f"{one.name} is there twice, in {one.path} and {other.path}; ImageNet's file "
                "names differ"
            )
    return members


def _check_count(split: str, count: int, partial: bool) -> None:
    if count == 0:
        raise ValueError(f"the source of the {split} split holds no images")
    if count != SPLIT_SIZES[split] and not partial:
        raise ValueError(
            f"the source of the {split} split holds {count:,} images, ImageNet's has "
            f"{SPLIT_SIZES[split]:,}; fetch it again, or give --partial to use these"
        )


def _claim(work: Path, members: dict[str, list[Member]], shard_bytes: int) -> None:
    """Creates the folder, or checks that it was begun from the same images."""
    digest = hashlib.sha256()
    for split, of_split in members.items():
        for member in of_split:
            digest.update(f"{split} {member.name} {member.label} {member.size}\n".encode())
    images = {split: len(of_split) for split, of_split in members.items()}
    source = {"images": images, "shard_bytes": shard_bytes, "sha256": digest.hexdigest()}
    file = work / _SOURCE_FILE
    if work.exists() and not file.exists() and any(work.iterdir()):
        raise ValueError(
            f"{work} exists and was not made by this command; choose another --out, or remove it"
        )
    if file.exists():
        begun = json.loads(file.read_text())
        if begun != source:
            raise ValueError(
                f"{work} was made from another source (of {begun['images']} images, now "
                f"{images}); give that one, choose another --out, or remove the folder"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(source))
    temporary.replace(file)


def _shards(work: Path, split: str, members: list[Member], shard_bytes: int) -> _Shards:
    size = sum(member.size for member in members)
    count = min(math.ceil(size / shard_bytes), len(members))
    bounds = [round(len(members) * index / count) for index in range(count + 1)]
    return {
        shard_path(work, split, index, count): members[start:stop]
        for index, (start, stop) in enumerate(itertools.pairwise(bounds))
    }


def _check_space(work: Path, shards: dict[str, _Shards]) -> None:
    for leftover in work.glob("*.tmp"):  # left by processes that were killed
        leftover.unlink()
    missing = [
        member.size
        for of_split in shards.values()
        for path, members in of_split.items()
        if not path.exists()
        for member in members
    ]
    needed = sum(missing)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise ValueError(
            f"{work} needs {needed / 1e9:.1f} GB more, and its disk has {free / 1e9:.1f} GB free; "
            "make room, or choose another --out"
        )


def _write_shards(
    shards: dict[str, _Shards], progress: Progress, processes: int | None
) -> dict[str, list[tuple[int, list[str]]]]:
    """Writes the missing shards and checks all; `check_shard`'s result for each, by split."""
    tasks = {
        split: progress.add_task(f"{split}: writing", total=sum(map(len, of_split.values())))
        for split, of_split in shards.items()
    }
    checks = {split: [] for split in shards}
    # Spawned: a forked process would inherit locks of the threads of ArrayRecord and the progress
    # bar.
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=begin_worker
    )
    try:
        futures = {
            executor.submit(_write_and_check_shard, path, members): (split, len(members))
            for split, of_split in shards.items()
            for path, members in of_split.items()
        }
        for future in as_completed(futures):
            split, count = futures[future]
            checks[split].append(future.result())
            progress.advance(tasks[split], count)
    finally:
        executor.shutdown(cancel_futures=True)
    return checks


def _write_and_check_shard(path: Path, members: list[Member]) -> tuple[int, list[str]]:
    if not path.exists():
        write_shard(path, members)
    return check_shard(path, members)


def _progress() -> Progress:
    """A bar on the standard error if that is a terminal, otherwise nothing."""
    console = Console(stderr=True)
    columns = Progress.get_default_columns()[:2]
    columns += (MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
