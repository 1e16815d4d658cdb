# SPDX-License-Identifier: Apache-2.0
"""Sets in COCO's form as ArrayRecord shards of the images and columns of the annotations.

Images are stored byte for byte, in the order of the annotations. Each is decoded once, so that a
damaged one, or one of another size than the annotations say, is found here and not in a training
run. The annotations' columns are files that all processes of a training run share, and that open in
no time: the 450 MB of COCO's training annotations take 20 s to parse.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mambaout_jax.data.prepare.resumable import (
    SHARD_BYTES,
    bar,
    check_out,
    check_sizes,
    check_space,
    claim,
    share_out,
    write_shards,
)
from mambaout_jax.data.sets.annotation_columns import load_columns, save_columns
from mambaout_jax.data.sets.annotations import Annotations, read_annotations
from mambaout_jax.data.sets.coco import fingerprint_of
from mambaout_jax.data.sets.coco_layout import (
    MANIFEST,
    PREPARED,
    check_images,
    check_same_categories,
    shard_path,
    split_files,
    splits_of,
    wanted,
)
from mambaout_jax.data.sets.image_files import decode_image
from mambaout_jax.data.sets.records import require_array_record

# Each record is a chunk of its own, for random access. JPEG files do not compress any further.
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare_coco` made.

    Attributes:
        folder: where the shards are.
        images, annotations, shards: their numbers, by split.
    """

    folder: Path
    images: dict[str, int]
    annotations: dict[str, int]
    shards: dict[str, int]

    def __str__(self) -> str:
        rows = [
            f"{split}: {count:,} images in {self.shards[split]:,} shards, "
            f"{self.annotations[split]:,} annotations"
            for split, count in self.images.items()
        ]
        return "\n".join(
            [
                str(self.folder),
                *rows,
                "train on it with --config.task=detection --config.data.source=coco "
                f"--config.data.path={self.folder.parent.parent}",
            ]
        )


class Image(NamedTuple):
    """One image of a split: a file and the height and width that its annotations are for."""

    name: str
    path: str
    size: int
    shape: tuple[int, int]


def prepare_coco(
    out: Path, folder: Path, *, processes: int | None = None, shard_bytes: int = SHARD_BYTES
) -> Prepared:
    """Writes `out`/coco_instances/1.0.0 from the splits that are there; a killed call resumes.

    Each shard has a temporary name until it is complete, and is then read back and compared with
    the image files, byte for byte; so are the annotations. The folder gets its final name only when
    everything is there. Called again on a finished folder, the function checks all of it again.

    Args:
        out: needs as much space as the images.
        folder: with annotations/ and the folders of images, as `sets.coco` reads it.
        processes: number of worker processes; None: one per core.
        shard_bytes: bytes of image files in one shard, on average.

    Raises:
        FileNotFoundError, ValueError: a source is missing, damaged, too large for the disk, or not
            the one that `out` was begun with; an image has not the size that is written of it.
        NotADirectoryError, PermissionError: `out` cannot be written.
        UnreadableImageError: an image cannot be decoded.
        ModuleNotFoundError: array_record is not installed.
    """
    require_array_record()
    check_out(out)
    finished = out / PREPARED
    unfinished = finished.with_name(f"{finished.name}.incomplete")
    work = finished if finished.exists() else unfinished
    with bar() as progress:
        annotations, images = {}, {}
        for split in _splits(folder):
            file, pictures = split_files(folder, split)
            annotations[split] = read_annotations(file)
            check_images(annotations[split], pictures)
            images[split] = _images(annotations[split], pictures)
            check_sizes(split, images[split])
        counts = {split: len(of_split) for split, of_split in images.items()}
        claim(work, counts, shard_bytes, _contents(annotations, images))
        shards = {
            split: share_out(of_split, shard_bytes, functools.partial(shard_path, work, split))
            for split, of_split in images.items()
        }
        check_space(work, shards)
        write_shards(shards, write_shard, check_shard, progress, processes)
    for split, of_split in annotations.items():
        _write_columns(of_split, work / split)
    numbers = {split: len(of_split) for split, of_split in shards.items()}
    if work == unfinished:
        (work / MANIFEST).write_text(json.dumps({"images": counts, "shards": numbers}))
        work.rename(finished)
    objects = {split: len(of_split.ids) for split, of_split in annotations.items()}
    return Prepared(finished, counts, objects, numbers)


def write_shard(path: Path, images: list[Image]) -> None:
    """Writes a shard of these images in this order; `path` exists only when it is complete.

    Raises:
        UnreadableImageError: an image cannot be decoded.
        ValueError: an image has not the size that the annotations are for.
        OSError: an image cannot be read, or the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    for image in images:
        content = Path(image.path).read_bytes()
        height, width = np.asarray(decode_image(content, 3, image.path)).shape[:2]
        if (height, width) != image.shape:
            raise ValueError(
                f"{image.path} has {height} x {width} pixels (height x width), and its annotations "
                f"say {image.shape[0]} x {image.shape[1]}; give the images that they were made on"
            )
        writer.write(content)
    writer.close()
    temporary.replace(path)


def check_shard(path: Path, images: list[Image]) -> None:
    """Reads a shard back.

    Raises:
        ValueError: the shard does not hold exactly these files, in this order.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        for record, image in zip(reader.read_all(), images, strict=True):
            if record != Path(image.path).read_bytes():
                raise ValueError(f"it does not hold {image.path}")
        reader.close()
    # ArrayRecord raises errors of many types.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove this file and run the same command again"
        ) from error


def _splits(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"--folder {folder} is no folder; {wanted(folder)}")
    found = splits_of(folder)
    if not found:
        raise FileNotFoundError(f"--folder {folder} holds no annotations; {wanted(folder)}")
    check_same_categories(folder)
    return found


def _images(annotations: Annotations, folder: Path) -> list[Image]:
    found = []
    for number, (height, width) in enumerate(annotations.image_sizes.tolist()):
        name = annotations.file_name(number)
        path = folder / name
        found.append(Image(name, str(path), path.stat().st_size, (height, width)))
    return found


def _contents(annotations: dict[str, Annotations], images: dict[str, list[Image]]) -> Iterator[str]:
    """What tells one source from another, line by line."""
    for split, of_split in images.items():
        yield f"{split} {fingerprint_of(annotations[split])}"
        for image in of_split:
            yield f"{split} {image.name} {image.size}"


def _write_columns(annotations: Annotations, folder: Path) -> None:
    """Writes the columns, if they are not there, and reads them back."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        save_columns(annotations, temporary)
        temporary.replace(folder)
    found = load_columns(folder)
    same = fingerprint_of(found) == fingerprint_of(annotations)
    if not same or not np.array_equal(found.ids, annotations.ids):
        raise ValueError(
            f"{folder} is damaged: it does not hold the annotations of {annotations.file}; remove "
            "this folder and run the same command again"
        )
