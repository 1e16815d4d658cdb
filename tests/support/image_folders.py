# SPDX-License-Identifier: Apache-2.0
"""Small images in class folders."""

from PIL import Image


def write(path, value=128, mode="L", size=(3, 2), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


def write_classes(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write(root / name / f"{index:03}.png")
    return root
