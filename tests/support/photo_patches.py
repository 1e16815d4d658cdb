# SPDX-License-Identifier: Apache-2.0
"""A small folder of real photographs: patches of the two that scikit-learn ships."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE = 48


def write_photo_patches(folder, per_class=24):
    """Writes `folder`/{train,val}/{china,flower}/*.jpg.

    Training patches come from the left two thirds of a photograph, the others from the rest.
    """
    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")  # (427, 640, 3)
        border = 2 * photo.shape[1] // 3
        for split, low, high, count in (
            ("train", 0, border, per_class),
            ("val", border, photo.shape[1], per_class // 2),
        ):
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(count):
                top = rng.integers(photo.shape[0] - SIDE)
                left = rng.integers(low, high - SIDE)
                patch = photo[top : top + SIDE, left : left + SIDE]
                Image.fromarray(patch).save(target / f"{i:03d}.jpg", quality=90)
