# SPDX-License-Identifier: Apache-2.0
"""Where the files of a set in COCO's form are: as COCO gives them, or prepared."""

import json
import mmap
import os
from pathlib import Path

from mambaout_jax.data.sets.annotations import Annotations, read_categories
from mambaout_jax.data.sets.identity import class_changes

SPLIT_NAMES = {"train": "train", "validation": "val"}  # in COCO's file names
PREPARED = "coco_instances/1.0.0"
MANIFEST = "manifest.json"
PREPARE = "mambaout prepare coco --folder COCO --out DIR"

_YEAR = "2017"  # where there are files of several


def wanted(root: Path) -> str:
    """What is looked for, and where, to end a message with."""
    return (
        f"data.source='coco' looks for {root}/annotations/instances_train{_YEAR}.json and "
        f"instances_val{_YEAR}.json with {root}/train{_YEAR}/ and val{_YEAR}/ (another year or "
        f"none will do), and for {root}/{PREPARED}, which `{PREPARE}` writes"
    )


def splits_of(root: Path) -> list[str]:
    """The splits that have annotations."""
    return [split for split in SPLIT_NAMES if _annotation_file(root, split)]


def split_files(root: Path, split: str) -> tuple[Path, Path]:
    """The annotations of a split and the folder of its images.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: several files could be meant.
    """
    file = _annotation_file(root, split)
    if file is None:
        raise FileNotFoundError(
            f"{root} has no annotations of the {split} split: {root}/annotations/"
            f"instances_{SPLIT_NAMES[split]}{_YEAR}.json is not there; {wanted(root)}"
        )
    name = file.stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return file, folder
    raise FileNotFoundError(
        f"{root} holds {file.relative_to(root)} and no images for it: neither {name}/ nor "
        f"images/{name}/ is there; unpack them, or link to them"
    )


def check_same_categories(root: Path) -> None:
    """Raises ValueError where the files of the two splits, if both are there, list others."""
    files = [file for split in SPLIT_NAMES if (file := _annotation_file(root, split))]
    if len(files) < 2:
        return
    first, second = (_categories(file) for file in files)
    if first and second and first != second:
        words = class_changes(first[0], second[0]) or "their ids differ"
        raise ValueError(
            f"{files[1]} has other categories than {files[0]}, so that labels would mean two "
            f"things ({words}); give both files the same list"
        )


def check_images(annotations: Annotations, folder: Path) -> None:
    """Raises FileNotFoundError where images are missing from their folder."""
    there = {os.fsencode(name) for name in os.listdir(folder)}
    names = annotations.file_names.tolist()
    missing = [
        name
        for name in names
        if name not in there and not (b"/" in name and (folder / name.decode()).is_file())
    ]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(names):,} images that {annotations.file} lists are "
            f"missing from {folder}, the first: {missing[0].decode()}; unpack them again, or "
            "remove them from the file"
        )


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """One file of a split's images."""
    return folder / f"coco-{split}.array_record-{index:05}-of-{count:05}"


def shards_of(folder: Path, split: str) -> list[Path]:
    """The files of a prepared split's images, in their order.

    Raises:
        FileNotFoundError: the split or some of its files are missing.
        ValueError: the manifest is damaged.
    """
    try:
        counts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
        count = counts.get(split, 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / MANIFEST} is damaged ({error}); prepare the data again: {PREPARE}"
        ) from error
    if not count:
        raise FileNotFoundError(
            f"{folder} holds no {split} split, only {sorted(counts)}; prepare it from a folder "
            f"that has both, into another DIR: {PREPARE}"
        )
    shards = [shard_path(folder, split, index, count) for index in range(count)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {count} {split} shards are missing from {folder}, the first: "
            f"{missing[0]}; copy them again, or prepare the data again: {PREPARE}"
        )
    return shards


def _annotation_file(root: Path, split: str) -> Path | None:
    found = sorted((root / "annotations").glob(f"instances_{SPLIT_NAMES[split]}*.json"))
    chosen = [file for file in found if file.stem.endswith(_YEAR)] or found
    if len(chosen) > 1:
        raise ValueError(
            f"{root}/annotations holds {' and '.join(file.name for file in chosen)}, and any of "
            f"them could be the {split} split; move the others away"
        )
    return chosen[0] if chosen else None


def _categories(file: Path) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """Names and ids, from the end of the file, where COCO's are; None where it is no such file."""
    with open(file, "rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(b"[", max(content.rfind(b'"categories"'), 0))
            text = content[max(start, 0) :]
    try:
        elements, _ = json.JSONDecoder().raw_decode(text.decode())
        return read_categories(file, elements)
    except ValueError:  # `read_annotations` says more of the file that is opened
        return None
