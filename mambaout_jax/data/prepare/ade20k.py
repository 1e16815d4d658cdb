# SPDX-License-Identifier: Apache-2.0
"""ADE20K's scene parsing benchmark from its archive, or its folders, to ArrayRecord shards.

Image and label files are stored byte for byte. Each pair is decoded once, so that a damaged file,
labels of another kind or of another size than their image are found here and not in a training run.
"""

import dataclasses
import functools
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

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
from mambaout_jax.data.sets import ade20k_files as files
from mambaout_jax.data.sets.ade20k import SPLIT_SIZES
from mambaout_jax.data.sets.image_files import decode_image
from mambaout_jax.data.sets.listing import is_image

# Each record is a chunk of its own, for random access. JPEG and PNG do not compress any further.
_OPTIONS = "group_size:1,uncompressed"
_IN_ARCHIVE = re.compile(r"(?:.*/)?(images|annotations)/(training|validation)/([^/]+)")

_Size = tuple[str, int, int]  # name, height, width


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare_ade20k` made.

    Attributes:
        folder: where the shards are.
        images, shards: their numbers, by split.
    """

    folder: Path
    images: dict[str, int]
    shards: dict[str, int]

    def __str__(self) -> str:
        rows = [
            f"{split}: {count:,} images with their labels in {self.shards[split]:,} shards"
            for split, count in self.images.items()
        ]
        return "\n".join(
            [
                str(self.folder),
                *rows,
                "train on it with --config.task=segmentation --config.data.source=ade20k "
                f"--config.data.path={self.folder.parent.parent}",
            ]
        )


class Pair(NamedTuple):
    """An image and its labels: two files, or two members of the archive `path`."""

    name: str  # what both are called, without suffix
    path: str
    image: str
    labels: str
    size: int
    archived: bool

    def read(self) -> tuple[bytes, bytes]:
        """The bytes of the image and of the label file.

        Raises:
            ValueError: the archive is damaged.
            OSError: a file cannot be read.
        """
        if not self.archived:
            return Path(self.image).read_bytes(), Path(self.labels).read_bytes()
        archive = _archive(self.path)
        try:
            return archive.read(self.image), archive.read(self.labels)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"{self.path} is damaged at {self.name} ({error}); fetch it again from "
                f"{files.RELEASE_URL}"
            ) from error


def prepare_ade20k(
    out: Path,
    *,
    archive: Path | None = None,
    folder: Path | None = None,
    partial: bool = False,
    processes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Prepared:
    """Writes `out`/ade20k/1.0.0. The same call resumes where a killed one stopped (`resumable`).

    Args:
        out: where the folder ade20k/ is made; needs as much space as the archive.
        archive: ADEChallengeData2016.zip.
        folder: used instead: with images/ and annotations/, or the one that holds
            ADEChallengeData2016/. A split without a folder is not written.
        partial: whether to accept another number of images than the benchmark has.
        processes: number of worker processes; None: one per core.
        shard_bytes: bytes of files in one shard, on average.

    Raises:
        FileNotFoundError, ValueError: the source is missing, incomplete, damaged, another data set,
            too large for the disk, or not the one that the folder was begun with.
        NotADirectoryError, PermissionError: `out` cannot be written.
        UnreadableImageError: an image or label file cannot be decoded.
    """
    check_out(out)
    finished = out / files.PREPARED
    work = finished if finished.exists() else finished.with_name(f"{finished.name}.incomplete")
    with bar() as progress:
        pairs = _sources(archive, folder)
        for split, of_split in pairs.items():
            in_order(of_split, "ADE20K")
            check_sizes(split, of_split)
            _check_count(split, len(of_split), partial)
        images = {split: len(of_split) for split, of_split in pairs.items()}
        claim(work, images, shard_bytes, _contents(pairs))
        shards = {
            split: share_out(
                of_split, shard_bytes, functools.partial(files.shard_path, work, split)
            )
            for split, of_split in pairs.items()
        }
        check_space(work, shards)
        sizes = _write(shards, progress, processes)
    files.write_manifest(work, sizes)
    if work != finished:
        work.rename(finished)
    return Prepared(finished, images, {split: len(shards[split]) for split in shards})


def write_shard(path: Path, pairs: list[Pair]) -> None:
    """Writes a shard of these pairs in this order; `path` exists only when it is complete.

    Raises:
        UnreadableImageError, ValueError: an image or labels are damaged or unsuitable.
        OSError: a source cannot be read, or the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    for pair in pairs:
        image, labels = pair.read()
        image_name, labels_name = f"{pair.image} of {pair.path}", f"{pair.labels} of {pair.path}"
        decoded = decode_image(image, 3, image_name)
        files.check_sizes(decoded, image_name, files.label_size(labels, labels_name), labels_name)
        files.decode_labels(labels, labels_name)
        writer.write(files.pack(pair.name, image, labels))
    writer.close()
    temporary.replace(path)


def check_shard(path: Path, pairs: list[Pair]) -> list[_Size]:
    """Reads a shard back; returns name, height and width of each image.

    Raises:
        ValueError: the shard does not hold exactly these pairs in this order.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    found = []
    try:
        reader = ArrayRecordReader(str(path))
        for record, pair in zip(reader.read_all(), pairs, strict=True):
            name, image, labels = files.unpack(record)
            if name != pair.name or len(image) + len(labels) != pair.size:
                raise ValueError(f"it holds {name} in place of {pair.name}, or other bytes")
            found.append((name, *files.label_size(labels, name)))
        reader.close()
    except Exception as error:  # ArrayRecord's are of many types
        raise ValueError(
            f"{path} is damaged ({error}); remove this file and run the same command again"
        ) from error
    return found


def _sources(archive: Path | None, folder: Path | None) -> dict[str, list[Pair]]:
    if bool(archive) == bool(folder):
        raise ValueError(f"give --zip {files.RELEASE}.zip, or --folder with what was in it")
    if archive:
        return _in_archive(archive)
    assert folder is not None
    root = files.release_root(folder) if folder.is_dir() else None
    if root is None:
        what = "holds no images/ and annotations/" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(
            f"--folder {folder} {what}; give the folder {files.RELEASE} of {files.RELEASE_URL}"
        )
    return {
        split: [_of_files(root, *pair) for pair in files.pairs_of(root, split)]
        for split, name in files.SPLIT_FOLDERS.items()
        if (root / "images" / name).is_dir() or (root / "annotations" / name).is_dir()
    }


def _of_files(root: Path, image: Path, labels: Path) -> Pair:
    name = labels.stem
    sizes = [path.stat().st_size for path in (image, labels)]
    return Pair(name, str(root), str(image), str(labels), _sum_of(sizes), False)


def _in_archive(path: Path) -> dict[str, list[Pair]]:
    if not path.is_file():
        raise FileNotFoundError(f"--zip {path} does not exist; {files.RELEASE_URL} has it")
    try:
        members = _archive(str(path)).infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is no zip archive, or it is truncated ({error}); fetch it again from "
            f"{files.RELEASE_URL}"
        ) from error
    found: dict[tuple[str, str], dict[str, zipfile.ZipInfo]] = {}
    for member in members:
        match = _IN_ARCHIVE.fullmatch(member.filename)
        if match and is_image(match[3]) and "__MACOSX" not in member.filename:
            found.setdefault((match[2], match[1]), {})[Path(match[3]).stem] = member
    splits = {
        split: (found.get((name, "images"), {}), found.get((name, "annotations"), {}))
        for split, name in files.SPLIT_FOLDERS.items()
    }
    if not any(images or labels for images, labels in splits.values()):
        first = members[0].filename if members else "nothing"
        raise ValueError(
            f"{path} holds {first}, and not images/training/, annotations/training/ and so on: the "
            f"benchmark of {files.CLASSES} classes is {files.RELEASE_URL}"
        )
    return {
        split: _of_archive(path, files.SPLIT_FOLDERS[split], images, labels)
        for split, (images, labels) in splits.items()
        if images or labels
    }


def _of_archive(
    path: Path,
    name: str,
    images: dict[str, zipfile.ZipInfo],
    labels: dict[str, zipfile.ZipInfo],
) -> list[Pair]:
    where, labels_where = (f"{kind}/{name} of {path}" for kind in ("images", "annotations"))
    stems = {stem: member.filename for stem, member in images.items()}
    files.check_pairs(stems, set(labels), where, labels_where)
    return [
        Pair(
            stem,
            str(path),
            image.filename,
            labels[stem].filename,
            _sum_of([image.file_size, labels[stem].file_size]),
            True,
        )
        for stem, image in images.items()
    ]


def _sum_of(sizes: list[int]) -> int:
    """0 where one of them is, so that an empty file is told."""
    return sum(sizes) if all(sizes) else 0


@functools.lru_cache(maxsize=1)
def _archive(path: str) -> zipfile.ZipFile:
    """Opened once by each process: listing takes half a second."""
    return zipfile.ZipFile(path)


def _check_count(split: str, count: int, partial: bool) -> None:
    if count != SPLIT_SIZES[split] and not partial:
        raise ValueError(
            f"the source of the {split} split holds {count:,} images, ADE20K's has "
            f"{SPLIT_SIZES[split]:,}; fetch it again, or give --partial to use these"
        )


def _contents(pairs: dict[str, list[Pair]]) -> Iterator[str]:
    """A line for each pair, by which another source is told."""
    for split, of_split in pairs.items():
        for pair in of_split:
            yield f"{split} {pair.name} {pair.size}"


def _write(
    shards: dict[str, dict[Path, list[Pair]]], progress: Progress, processes: int | None
) -> dict[str, dict[Path, list[_Size]]]:
    found = write_shards(shards, write_shard, check_shard, progress, processes)
    return {
        split: dict(zip(of_split, found[split], strict=True)) for split, of_split in shards.items()
    }
