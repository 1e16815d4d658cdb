# SPDX-License-Identifier: Apache-2.0
"""The files of ADE20K's scene parsing benchmark: where they are, labels read, records packed.

A label file is a PNG of one channel with 8 bits: 0 is what has no class, 1 to 150 are the classes,
255 does not count. As for mmseg's `reduce_zero_label`, labels are one less, and 0 becomes 255.

A prepared set, `ade20k/1.0.0/`, has `manifest.json` and ArrayRecord shards. A record is a line of
JSON, `{"name": "ADE_val_00000001", "image": 61234, "labels": 5678}`, followed by as many bytes of
the image file and of the label file.
"""

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mambaout_jax.data.sets.image_files import Decoded, UnreadableImageError
from mambaout_jax.data.sets.listing import images_below, listed

RELEASE = "ADEChallengeData2016"  # folder and archive, as released
RELEASE_URL = f"data.csail.mit.edu/places/ADEchallenge/{RELEASE}.zip"
PREPARED = "ade20k/1.0.0"
MANIFEST = "manifest.json"
PREPARE = f"mambaout prepare ade20k --zip {RELEASE}.zip --out DIR"
SPLIT_FOLDERS = {"train": "training", "validation": "validation"}
CLASSES = 150
IGNORED = 255

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def wanted(root: Path) -> str:
    """What is looked for, and where, to end a message with."""
    return (
        f"data.source='ade20k' looks for {root}/images/training/*.jpg, {root}/annotations/training/"
        f"*.png and both validation/ likewise ({RELEASE_URL}), and for {root}/{PREPARED}, which "
        f"`{PREPARE}` writes"
    )


def release_root(root: Path) -> Path | None:
    """The folder with images/ and annotations/: `root`, or ADEChallengeData2016 in it.

    Raises:
        ValueError: it holds the full ADE20K release, which is another data set.
    """
    for folder in (root, root / RELEASE):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    full = [*root.glob("ADE20K_20*"), *root.glob("index_ade20k.*"), *root.glob("images/ADE")]
    if full:
        raise ValueError(
            f"{root} holds {full[0].relative_to(root)}, of the full ADE20K release with thousands "
            f"of classes and colour-coded labels; the benchmark of {CLASSES} classes is another "
            f"download: {RELEASE_URL}"
        )
    return None


def pairs_of(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and label file of each example of a split, sorted by name.

    Args:
        root: folder with images/ and annotations/.
        split: "train" or "validation".

    Raises:
        FileNotFoundError: a folder is not there, or images have no labels.
        ValueError: there are no images, labels without an image, or two images for one label file.
    """
    name = SPLIT_FOLDERS[split]
    images, labels = root / "images" / name, root / "annotations" / name
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{root} has no {split} split: {folder} is no folder; unpack {RELEASE}.zip again, "
                "or put the files there"
            )
    by_stem: dict[str, str] = {}
    for file in images_below(images):
        stem = _stem(file)
        if stem in by_stem:
            raise ValueError(
                f"{images} holds {by_stem[stem]} and {file}, and both would have the labels "
                f"{stem}.png; rename one"
            )
        by_stem[stem] = file
    if not by_stem:
        raise ValueError(f"the {split} split is empty: no images below {images}; unpack it again")
    check_pairs(
        by_stem,
        {_stem(file) for file in images_below(labels) if file.endswith(".png")},
        str(images),
        str(labels),
    )
    return [(images / file, labels / f"{stem}.png") for stem, file in sorted(by_stem.items())]


def check_pairs(images: Mapping[str, str], labels: set[str], where: str, labels_where: str) -> None:
    """Checks that all images have labels, and the other way round.

    Args:
        images: file names by what images and labels have in common, the name without its suffix.
        labels: the same of the label files.
        where, labels_where: what messages call the two folders.

    Raises:
        FileNotFoundError: images have no labels.
        ValueError: labels have no image.
    """
    missing = sorted(images.keys() - labels)
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(images):,} images in {where} have no labels in "
            f"{labels_where}: {listed([f'{stem}.png' for stem in missing], 3)} are not there; "
            "unpack the labels again, or remove the images"
        )
    alone = sorted(labels - images.keys())
    if alone:
        raise ValueError(
            f"{len(alone):,} label files in {labels_where} have no image in {where}: "
            f"{listed([f'{stem}.png' for stem in alone], 3)}; unpack the images again, or remove "
            "the labels"
        )


def decode_labels(content: bytes, name: str) -> UInt8[np.ndarray, "H W"]:
    """The labels 0 to 149, and 255, of a label file.

    Args:
        content: bytes of the file.
        name: what messages call it.

    Raises:
        UnreadableImageError: it is no PNG, or is damaged.
        ValueError: it has colours, other than 8 bits, or numbers beyond the classes.
    """
    _, _, bits, colour = _header(content, name)
    if colour not in (0, 3) or (bits != 8 and colour == 0):
        raise ValueError(
            f"{name} has pixels of {bits} bits ({_COLOURS.get(colour, 'unknown')}), and labels "
            f"have one channel of 8; RGB and 16-bit labels are those of the full ADE20K release, "
            f"this reads the benchmark of {CLASSES} classes: {RELEASE_URL}"
        )
    try:
        with Image.open(io.BytesIO(content)) as image:
            ids = np.asarray(image)
    except Exception as error:  # Pillow's are of many types
        raise UnreadableImageError(f"cannot read {name}: {error}") from error
    beyond = np.unique(ids[(ids > CLASSES) & (ids != IGNORED)]).tolist()
    if beyond:
        first = ", ".join(map(str, beyond[:5]))
        raise ValueError(
            f"{name} holds {first}, and labels are 0 (other), 1 to {CLASSES}, or {IGNORED} (not "
            "counted); it is of another data set, or was saved with other numbers: "
            f"{RELEASE_URL}"
        )
    return np.where(ids == IGNORED, IGNORED, ids - np.uint8(1))  # 0 - 1 is 255


def label_size(content: bytes, name: str) -> tuple[int, int]:
    """Height and width, by the first bytes of a label file.

    Raises:
        UnreadableImageError: they are not those of a PNG.
    """
    return _header(content, name)[:2]


def check_sizes(image: Decoded, image_name: str, labels: tuple[int, int], labels_name: str) -> None:
    """Raises ValueError where an image and its labels, of this height and width, differ in size."""
    size = tuple(image.shape[:2]) if isinstance(image, np.ndarray) else image.size[::-1]
    if size != labels:
        cause = "give the labels that were drawn on this image"
        if size == labels[::-1]:
            cause = "an orientation in its EXIF block may turn it: save the image without one"
        raise ValueError(
            f"{labels_name} has {labels[0]} x {labels[1]} pixels (height x width), and "
            f"{image_name} has {size[0]} x {size[1]}; {cause}"
        )


def pack(name: str, image: bytes, labels: bytes) -> bytes:
    """One record of a prepared set."""
    header = {"name": name, "image": len(image), "labels": len(labels)}
    return b"%s\n%s%s" % (json.dumps(header).encode(), image, labels)


def unpack(record: bytes) -> tuple[str, bytes, bytes]:
    """Name, image file and label file of a record.

    Raises:
        ValueError: it is no such record.
    """
    line, _, rest = record.partition(b"\n")
    try:
        header = json.loads(line)
        name, image, labels = header["name"], header["image"], header["labels"]
        complete = image >= 0 and labels >= 0 and image + labels == len(rest)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"a record begins with {line[:40]!r}, which is not its header") from error
    if not complete:
        raise ValueError(f"the record of {name} has {len(rest)} bytes, not {image} + {labels}")
    return name, rest[:image], rest[image:]


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """One shard of a prepared split."""
    return folder / f"ade20k-{split}.array_record-{index:05}-of-{count:05}"


def write_manifest(folder: Path, splits: Mapping[str, Mapping[Path, list[tuple[str, int, int]]]]):
    """Writes what `read_manifest` reads.

    Args:
        folder: where the shards are.
        splits: by split and shard, the name, height and width of each image in it.
    """
    manifest = {}
    for split, shards in splits.items():
        images = [image for found in shards.values() for image in found]
        manifest[split] = {
            "shards": {path.name: path.stat().st_size for path in shards},
            "sizes": [size for _, *size in images],
            "sha256": hashlib.sha256(json.dumps(images).encode()).hexdigest(),
        }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest))
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path, split: str) -> dict[str, Any]:
    """What is prepared of a split: `shards`, their bytes by name, `sizes` (H, W) of the images in
    their order, `sha256` of names and sizes.

    Raises:
        FileNotFoundError: the split or some of its shards are missing.
        ValueError: the manifest or a shard is damaged.
    """
    file = folder / MANIFEST
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
        found = splits.get(split)
        shards = dict(found["shards"]) if found else {}
        sizes = np.array(found["sizes"] if found else [], np.int32).reshape(-1, 2)
        digest = str(found["sha256"]) if found else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); copy it again, or prepare the "
            f"data again: {PREPARE}"
        ) from error
    if not shards:
        raise FileNotFoundError(
            f"{folder} holds no {split} split, only {sorted(splits)}; prepare both into another "
            f"folder: {PREPARE}"
        )
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(shards)} {split} shards are missing from {folder}, the "
            f"first: {missing[0]}; copy them again, or prepare the data again: {PREPARE}"
        )
    for name, size in shards.items():
        if (folder / name).stat().st_size != size:
            raise ValueError(
                f"{folder / name} has {(folder / name).stat().st_size:,} bytes and had {size:,}; "
                f"copy it again, or prepare the data again: {PREPARE}"
            )
    return {"shards": shards, "sizes": sizes, "sha256": digest}


def _header(content: bytes, name: str) -> tuple[int, int, int, int]:
    """Height, width, bits and colour type of a PNG."""
    if not content.startswith(_PNG) or len(content) < 26:
        what = f"starts with {content[:16]!r}" if content else "is empty"
        raise UnreadableImageError(f"cannot read {name}: a label file is a PNG, and this {what}")
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    return height, width, bits, colour


def _stem(file: str) -> str:
    return str(Path(file).with_suffix("").as_posix())
