# SPDX-License-Identifier: Apache-2.0
"""ADE20K's scene parsing benchmark (ADEChallengeData2016): 150 classes, a label for every pixel.

It is read as it was released, in folders, or as `mambaout prepare ade20k` wrote it; both give the
same images and labels. Labels are 0 to 149, and 255 where a pixel does not count (`ade20k_files`).
"""

import abc
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from mambaout_jax.data.sets.ade20k_files import (
    MANIFEST,
    PREPARE,
    PREPARED,
    check_sizes,
    decode_labels,
    label_size,
    pairs_of,
    read_manifest,
    release_root,
    unpack,
    wanted,
)
from mambaout_jax.data.sets.identity import fingerprint
from mambaout_jax.data.sets.image_files import MAX_PIXELS, UnreadableImageError, decode_image
from mambaout_jax.data.sets.records import Records

SPLIT_SIZES = {"train": 20_210, "validation": 2_000}
CLASS_NAMES: tuple[str, ...] = tuple(
    line
    for line in Path(__file__).with_name("ade20k_classes.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
)

_HEADER = 32  # bytes of a PNG that tell its size
_THREADS = 16

_logger = logging.getLogger("mambaout_jax")


class LabelledScenes(abc.ABC):
    """Images with a label for each pixel (`sources.SegmentationImages`), wherever they are stored.

    Args:
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.
    """

    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(self, channels: int = 3, decoder: str = "pillow", max_pixels: int = MAX_PIXELS):
        self._reading = channels, decoder, max_pixels

    @property
    @abc.abstractmethod
    def image_sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of each image, known without decoding."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """`{"image": Decoded, "labels": uint8 (H, W)}`.

        Raises:
            UnreadableImageError: the image or the label file cannot be read.
            ValueError: the labels are of another kind (`decode_labels`), or have another size.
        """
        image_name, image, labels_name, labels = self._read(index)
        channels, decoder, max_pixels = self._reading
        decoded = decode_image(image, channels, image_name, decoder, max_pixels)
        check_sizes(decoded, image_name, label_size(labels, labels_name), labels_name)
        return {"image": decoded, "labels": decode_labels(labels, labels_name)}

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`; counting would decode all labels."""
        return dict.fromkeys(CLASS_NAMES)

    @abc.abstractmethod
    def _read(self, index: int) -> tuple[str, bytes, str, bytes]:
        """What messages call an image, its file, and the same of its labels."""


class ADE20KFolders(LabelledScenes):
    """The benchmark as it was released, or a set of one's own in that form, with its classes.

    Args:
        root: folder with images/ and annotations/.
        split: "train" or "validation".
        reading: channels, decoder, max_pixels, see `LabelledScenes`.

    Attributes:
        pairs: image and label file of each example.

    Raises:
        FileNotFoundError, ValueError: as `pairs_of`.
    """

    def __init__(self, root: Path, split: str, *reading: Any):
        super().__init__(*reading)
        self._root = root
        self.pairs = pairs_of(root, split)

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def image_sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of each image, from the first bytes of its label file."""

        def size(labels: Path) -> tuple[int, int]:
            return label_size(_content(labels, _HEADER), str(labels))

        with ThreadPoolExecutor(_THREADS) as pool:  # for disks behind a network
            sizes = list(pool.map(size, (labels for _, labels in self.pairs)))
        return np.array(sizes, np.int32)

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`."""
        names = [image.relative_to(self._root).as_posix() for image, _ in self.pairs]
        return fingerprint(names, [0] * len(names))

    def _read(self, index: int) -> tuple[str, bytes, str, bytes]:
        image, labels = self.pairs[index]
        return str(image), _content(image), str(labels), _content(labels)


class PreparedADE20K(LabelledScenes):
    """The benchmark as `mambaout prepare ade20k` writes it.

    Args:
        folder: what was prepared, such as DIR/ade20k/1.0.0.
        split: "train" or "validation".
        reading: channels, decoder, max_pixels, see `LabelledScenes`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as `read_manifest` and `Records`, or
            the shards hold other images.
    """

    def __init__(self, folder: Path, split: str, *reading: Any):
        super().__init__(*reading)
        self._folder = folder
        manifest = read_manifest(folder, split)
        self._sizes, self._digest = manifest["sizes"], manifest["sha256"]
        self._records = Records([folder / name for name in manifest["shards"]], PREPARE)
        if len(self._records) != len(self._sizes):
            raise ValueError(
                f"the {split} shards of {folder} hold {len(self._records):,} images and {MANIFEST} "
                f"names {len(self._sizes):,}; prepare the data again: {PREPARE}"
            )

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def image_sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of each image."""
        return self._sizes

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`; of names and sizes, from the manifest."""
        return self._digest

    def _read(self, index: int) -> tuple[str, bytes, str, bytes]:
        record = self._records[index]
        try:
            name, image, labels = unpack(record)
        except ValueError as error:
            raise UnreadableImageError(f"record {index} of {self._folder}: {error}") from error
        return f"image {name} of {self._folder}", image, f"labels {name} of {self._folder}", labels


def open_ade20k(
    path: str,
    split: str,
    channels: int = 3,
    decoder: str = "pillow",
    max_pixels: int = MAX_PIXELS,
) -> ADE20KFolders | PreparedADE20K:
    """Opens a split, with a warning if it has not as many images as the benchmark.

    Args:
        path: folder with images/ and annotations/, the one that ADEChallengeData2016 is in, or the
            DIR that `mambaout prepare ade20k` wrote to.
        split: "train" or "validation".
        channels: 1 decodes to greyscale, 3 to RGB.
        decoder, max_pixels: see `image_files.read_image`.

    Raises:
        FileNotFoundError, ValueError: something is missing or unsuitable; the message says where it
            was looked for and what to do.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data.path={path} {what}; {wanted(root)}")
    prepared, reading = root / PREPARED, (channels, decoder, max_pixels)
    if (prepared / MANIFEST).is_file():
        source = PreparedADE20K(prepared, split, *reading)
    elif prepared.with_name(f"{prepared.name}.incomplete").exists():
        raise FileNotFoundError(
            f"the preparation of {prepared} is not finished; run the command that began it again, "
            f"it resumes: {PREPARE}"
        )
    else:
        released = release_root(root)
        if released is None:
            raise FileNotFoundError(f"data.path={path} holds no ADE20K; {wanted(root)}")
        source = ADE20KFolders(released, split, *reading)
    if len(source) != SPLIT_SIZES[split]:
        _logger.warning(
            "the %s split of %s has %s images, not ADE20K's %s",
            split,
            root,
            f"{len(source):,}",
            f"{SPLIT_SIZES[split]:,}",
        )
    return source


def _content(path: Path, most: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise UnreadableImageError(f"cannot read {path}: {error}") from error
