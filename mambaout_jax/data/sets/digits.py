# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits that come with the installation: no download, and seconds to train on."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from mambaout_jax.data.sets.identity import fingerprint

VALIDATION_SHARE = 0.2
_SPLIT_SEED = 0  # fixed, so that every run, whatever its seed, is tested on the same images


class Digits:
    """The 1,797 handwritten digits of `sklearn.datasets.load_digits`, 8 x 8 pixels, ten classes.

    They are the test part of the Optical Recognition of Handwritten Digits set (E. Alpaydin and
    C. Kaynak, UCI Machine Learning Repository, 1998). The 17 grey levels 0..16 are spread over
    0..255. A fixed 20 % of every class forms the validation split.

    Args:
        split: "train" (1,438 images) or "validation" (359).
        channels: 1, or 3 for three equal channels.
    """

    class_names = tuple("0123456789")
    num_classes = 10

    def __init__(self, split: str, channels: int = 1):
        scans, labels = _read()
        indices = _split(labels)[split]
        pixels = ((scans[indices] * 255 + 8) // 16).astype(np.uint8)  # rounded to the nearest
        mode = "L" if channels == 1 else "RGB"
        self._images = [Image.fromarray(image).convert(mode) for image in pixels]
        self._labels = labels[indices].tolist()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self._images[index], "label": self._labels[index]}

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`."""
        counts = np.bincount(self._labels, minlength=self.num_classes)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`; images have no names, so their pixels count."""
        return fingerprint([image.tobytes().hex() for image in self._images], self._labels)


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (1797, 8, 8) and labels (1797,), both int64.

    From the file itself, if it is where it has always been: `load_digits` imports scikit-learn and
    SciPy, which takes longer than everything else before the first update.
    """
    spec = importlib.util.find_spec("sklearn")
    path = Path(str(spec and spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images.astype(np.int64), digits.target
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.int64, delimiter=",")  # 64 pixels and the label
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _split(labels: np.ndarray) -> dict[str, np.ndarray]:
    # RandomState, not Generator: numpy guarantees its stream forever, so the split never changes.
    shuffle = np.random.RandomState(_SPLIT_SEED).permutation
    train, validation = [], []
    for label in np.unique(labels):
        members = shuffle(np.flatnonzero(labels == label))
        held_out = round(VALIDATION_SHARE * len(members))
        validation.append(members[:held_out])
        train.append(members[held_out:])
    return {
        "train": np.sort(np.concatenate(train)),
        "validation": np.sort(np.concatenate(validation)),
    }
