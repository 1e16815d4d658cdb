# SPDX-License-Identifier: Apache-2.0
"""Where each image of ImageNet is stored, in the original archives or in folders, and its label.

Only headers are read here. The archives are those of ILSVRC 2012: the training archive holds one
archive per synset, the validation archive holds nothing but images.
"""

import contextlib
import importlib.util
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from mambaout_jax.data.sets.imagenet import (
    DATASET,
    LABELS,
    SPLIT_SIZES,
    labelled_folders,
)
from mambaout_jax.data.sets.listing import is_image, split_folder

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_SHA256 = {  # as TensorFlow Datasets lists them
    "train": "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
    "validation": "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
}


class Member(NamedTuple):
    """One image: `size` bytes at `offset` of the archive `path`, or the whole file `path`."""

    name: str  # the image file's name, without folders
    label: int
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The stored bytes.

        Raises:
            OSError: the file is gone, or shorter than it was.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise OSError(f"{self.path} ends inside {self.name}; it has changed, or is truncated")
        return content


def train_members(archive: Path) -> Iterator[Member]:
    """The images of ILSVRC2012_img_train.tar.

    Raises:
        FileNotFoundError: `archive` does not exist.
        ValueError: `archive` is a different archive, or damaged.
    """
    for outer, stream in _files(archive, "train"):
        synset = Path(outer.name).stem
        if not outer.name.endswith(".tar") or synset not in LABELS:
            raise ValueError(
                f"{archive} holds {outer.name}, so it is not ILSVRC2012_img_train.tar, which "
                f"holds one archive per synset (n01440764.tar, ...){_hint(outer.name)}"
            )
        for inner, _ in _files(archive, "train", stream):
            offset = outer.offset_data + inner.offset_data
            name = Path(inner.name).name
            yield Member(name, LABELS[synset], str(archive), offset, inner.size)


def validation_members(archive: Path, labels: list[int]) -> Iterator[Member]:
    """The images of ILSVRC2012_img_val.tar, labelled by `validation_labels`.

    Raises:
        FileNotFoundError: `archive` does not exist.
        ValueError: `archive` is a different archive, or damaged.
    """
    for info, _ in _files(archive, "validation"):
        name = Path(info.name).name
        label = _validation_label(archive, name, labels)
        yield Member(name, label, str(archive), info.offset_data, info.size)


def folder_members(root: Path, split: str, label_file: Path | None) -> Iterator[Member]:
    """The images in class folders, `root`/train/n01440764 and so on; `val` may hold them directly.

    Args:
        root: folder with train/ and val/, as for `ImageNetFolders`.
        split: "train" or "validation"; its folder must exist in `root`.
        label_file: list for `validation_labels`, needed if images are directly in `val`.

    Raises:
        FileNotFoundError, ValueError: as in `labelled_folders` and `validation_labels`.
    """
    folder = split_folder(root, split)
    assert folder is not None, f"{root} has no {split} split"
    flat = sorted(x.name for x in os.scandir(folder) if is_image(x.name) and x.is_file())
    if split == "validation" and flat:
        labels = validation_labels(label_file)
        for name in flat:
            yield _file_member(folder / name, _validation_label(folder, name, labels))
        return
    for synset, files in labelled_folders(root, folder).items():
        for file in files:
            yield _file_member(root / file, LABELS[synset])


def validation_labels(file: Path | None) -> list[int]:
    """The label of every validation image, in the order of the images' numbers.

    Args:
        file: 50,000 lines with one synset each; None: the list that `tensorflow_datasets` ships.

    Raises:
        FileNotFoundError: the list does not exist.
        ValueError: the file is not such a list.
    """
    if file is None:
        package = importlib.util.find_spec("tensorflow_datasets")
        if package is None or not package.submodule_search_locations:
            raise FileNotFoundError(
                "the validation images carry no labels, and tensorflow_datasets, which ships a "
                "list, is not installed: pip install 'mambaout-jax[data]', or give --val-labels "
                "FILE with the synset of image 1, 2, ... 50,000, one per line"
            )
        folder = Path(package.submodule_search_locations[0])
        file = folder / "datasets" / DATASET / "validation_labels.txt"
    if not file.is_file():
        raise FileNotFoundError(f"--val-labels {file} does not exist")
    try:
        synsets = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}); give --val-labels FILE") from error
    unknown = [synset for synset in synsets if synset not in LABELS]
    if unknown or len(synsets) != SPLIT_SIZES["validation"]:
        raise ValueError(
            f"{file} is not a list of {SPLIT_SIZES['validation']:,} synsets (n01440764, ...): it "
            f"has {len(synsets):,} words, of which {len(unknown):,} are not synsets of "
            f"ImageNet-1k, the first {unknown[:1]}. The numbers in the development kit's ground "
            "truth are not labels: its meta.mat says which synset each one stands for"
        )
    return [LABELS[synset] for synset in synsets]


@contextlib.contextmanager
def _explained(archive: Path, split: str) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise ValueError(
            f"{archive} is not a tar archive, or it is damaged or truncated ({error}); ImageNet's "
            f"{split} archive has the SHA-256 sum {_SHA256[split]}"
        ) from error


def _files(
    archive: Path, split: str, stream: io.BufferedReader | None = None
) -> Iterator[tuple[tarfile.TarInfo, io.BufferedReader]]:
    """The files of an archive with their content.

    Args:
        archive: path of the archive, which messages name.
        split: "train" or "validation".
        stream: an archive inside it, to list instead; None: the archive itself.
    """
    if not archive.is_file():
        raise FileNotFoundError(
            f"the {split} archive {archive} does not exist; image-net.org/download-images has it, "
            "after registration"
        )
    with _explained(archive, split), contextlib.ExitStack() as stack:
        stream = stream or stack.enter_context(archive.open("rb"))
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        for info in tar:
            if info.isreg():
                yield info, cast(io.BufferedReader, tar.extractfile(info))
        # A truncated header ends the iteration just as the block of zeros at an archive's end does.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")


def _validation_label(where: Path, name: str, labels: list[int]) -> int:
    match = _VALIDATION_NAME.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= len(labels):
        raise ValueError(
            f"{where} holds {name}, so it is not ImageNet's validation set, which holds "
            f"ILSVRC2012_val_00000001.JPEG ... ILSVRC2012_val_{len(labels):08}.JPEG{_hint(name)}"
        )
    return labels[int(match[1]) - 1]


def _hint(name: str) -> str:
    if _VALIDATION_NAME.fullmatch(Path(name).name):
        return "; this is the validation archive: give it as --val-tar"
    if Path(name).stem in LABELS:
        return "; this is the training archive: give it as --train-tar"
    return ""


def _file_member(path: Path, label: int) -> Member:
    return Member(path.name, label, str(path), 0, path.stat().st_size)
