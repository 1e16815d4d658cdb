# SPDX-License-Identifier: Apache-2.0
"""ImageNet from its original archives to ArrayRecord shards that TensorFlow Datasets also reads.

TensorFlow is not needed. Images are stored byte for byte as they came, except those that are not
grey or RGB JPEG files (in ImageNet 22 CMYK files and one PNG): they become RGB JPEG. Every image is
decoded once, so that a damaged one is found here and not in a training run.

Images are stored in the order of a hash of their names: every shard is a random sample of the
classes, and the same images give the same shards, byte for byte, from archives or from folders.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress

from mambaout_jax.data.prepare.archives import (
    Member,
    folder_members,
    train_members,
    validation_labels,
    validation_members,
)
from mambaout_jax.data.prepare.resumable import (
    SHARD_BYTES,
    bar,
    check_out,
    check_sizes,
    check_space,
    claim,
    in_order,
    share_out,
    write_shards,
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
)
from mambaout_jax.data.sets.listing import split_folder

_CONVERTED = {"train": 23, "validation": 0}  # 22 CMYK, 1 PNG

_logger = logging.getLogger("mambaout_jax")


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

    Shards are read back (`resumable`) to check the order, names, labels and image format. Archives
    are read in the order of the shards, by jumps: they should be on a disk without moving parts.

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
        NotADirectoryError, PermissionError: `out` cannot be written.
        UnreadableImageError: an image cannot be decoded.
        ModuleNotFoundError: the packages of mambaout-jax[data] are not installed.
    """
    require_data_packages()
    check_out(out)
    finished = out / DATASET / VERSION
    work = finished if finished.exists() else finished.with_name(f"{VERSION}.incomplete")
    sources = _sources(train_tar, val_tar, folder, val_labels)
    with bar() as progress:
        members = _list_members(sources, progress, partial)
        images = {split: len(of_split) for split, of_split in members.items()}
        claim(work, images, shard_bytes, _contents(members))
        shards = {
            split: share_out(of_split, shard_bytes, functools.partial(shard_path, work, split))
            for split, of_split in members.items()
        }
        check_space(work, shards)
        checks = write_shards(shards, write_shard, check_shard, progress, processes)
    lengths = {split: [len(part) for part in shards[split].values()] for split in shards}
    num_bytes = {split: sum(size for size, _ in checks[split]) for split in checks}
    write_metadata(work, lengths, num_bytes)
    if work != finished:
        work.rename(finished)
    converted = {
        split: sorted(name for _, names in checks[split] for name in names) for split in checks
    }
    if not partial:
        _report_converted(converted)
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
        members[split] = in_order(list(listed), "ImageNet")
        check_sizes(split, members[split])
        _check_count(split, len(members[split]), partial)
    return members


def _contents(members: dict[str, list[Member]]) -> Iterator[str]:
    """A line for each image, by which another source is told."""
    for split, of_split in members.items():
        for member in of_split:
            yield f"{split} {member.name} {member.label} {member.size}"


def _check_count(split: str, count: int, partial: bool) -> None:
    if count == 0:
        raise ValueError(f"the source of the {split} split holds no images")
    if count != SPLIT_SIZES[split] and not partial:
        raise ValueError(
            f"the source of the {split} split holds {count:,} images, ImageNet's has "
            f"{SPLIT_SIZES[split]:,}; fetch it again, or give --partial to use these"
        )
