# SPDX-License-Identifier: Apache-2.0
"""A few photographs with drawn labels, in the layout of ADEChallengeData2016."""

import io
import zipfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SIZES = ((60, 80), (80, 60), (60, 80), (64, 64), (70, 90))  # of training images in turn, H and W


def build(folder, training=5, validation=3):
    """Writes images/ and annotations/ below `folder`, the same each time.

    Returns:
        By split, a dict of name to the pixels (H, W, 3) before compression and the numbers of the
        label file, 0 to 150.
    """
    photo, rng = load_sample_image("china.jpg"), np.random.default_rng(0)
    truth = {}
    for split, name, count, prefix in (
        ("train", "training", training, "ADE_train"),
        ("validation", "validation", validation, "ADE_val"),
    ):
        truth[split] = {}
        for index in range(count):
            height, width = SIZES[index % len(SIZES)]
            top, left = rng.integers(300), rng.integers(500)
            pixels = photo[top : top + height, left : left + width]
            blocks = rng.integers(0, 151, (-(-height // 16), -(-width // 16)))
            ids = np.kron(blocks, np.ones((16, 16)))[:height, :width].astype(np.uint8)
            stem = f"{prefix}_{index + 1:08}"
            image = folder / "images" / name / f"{stem}.jpg"
            labels = folder / "annotations" / name / f"{stem}.png"
            for path in (image, labels):
                path.parent.mkdir(parents=True, exist_ok=True)
            # One greyscale file, as in the original.
            picture = Image.fromarray(pixels)
            (picture.convert("L") if index == 1 else picture).save(image, quality=90)
            Image.fromarray(ids).save(labels)
            truth[split][stem] = np.asarray(Image.open(image).convert("RGB")), ids
    return truth


def zipped(folder, path, prefix="ADEChallengeData2016/"):
    """Writes what is below `folder` as an archive, with what macOS adds."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{prefix}objectInfo150.txt", "Idx Ratio")
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"{prefix}{file.relative_to(folder).as_posix()}")
        archive.writestr(f"__MACOSX/{prefix}images/training/._ADE_train_00000001.jpg", "x")
    return path


def png(array, **options):
    """The bytes of a PNG of these pixels."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()
