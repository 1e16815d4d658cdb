# SPDX-License-Identifier: Apache-2.0
"""The 1000 classes of ImageNet-1k: `SYNSETS` and `CLASS_NAMES`, in label order."""

from pathlib import Path


def _read(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(line[:9], line[10:]) for line in lines if not line.startswith("#")]


_CLASSES = _read(Path(__file__).with_suffix(".txt"))

SYNSETS: tuple[str, ...] = tuple(synset for synset, _ in _CLASSES)  # WordNet 3.0: "n01440764"
CLASS_NAMES: tuple[str, ...] = tuple(name for _, name in _CLASSES)  # "tench"
