# SPDX-License-Identifier: Apache-2.0
"""A few images in the exact layout of ImageNet's archives, and in class folders.

The outer training archive holds one archive per synset with files n01440764_18.JPEG, the validation
archive files ILSVRC2012_val_00000001.JPEG alone, with the numbers that bear these labels in
ImageNet. The training images hold what ImageNet's hold: a CMYK JPEG, a PNG named .JPEG, a grey JPEG
and one with a broken EXIF block.
"""

import importlib.util
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SYNSETS = ("n01440764", "n02123045", "n07753592", "n15075141")  # tench, tabby, banana, paper
WIDTH, HEIGHT = 100, 75
KINDS = ("cmyk", "png", "grey", "broken_exif")  # of the first images, over all classes


@dataclass(frozen=True)
class Miniature:
    """What `build` wrote.

    Attributes:
        train_tar, val_tar: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
        folders: holds the same images as train/n01440764/*.JPEG and val/n01440764/*.JPEG.
        val_labels: the synsets of ImageNet's 50,000 validation images, one a line.
        train, validation: file name -> synset.
        special: kind (one of `KINDS`) -> file name, of training images.
    """

    train_tar: Path
    val_tar: Path
    folders: Path
    val_labels: Path
    train: dict[str, str]
    validation: dict[str, str]
    special: dict[str, str]


def build(folder, synsets=SYNSETS, images_per_class=4, validation=2):
    """Writes a miniature below `folder`, the same one each time.

    Args:
        folder: is made.
        synsets: of ImageNet-1k, in any order.
        images_per_class: to train on.
        validation: images per class.

    Returns:
        A `Miniature`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    labels = package / "datasets" / "imagenet2012" / "validation_labels.txt"
    rng = np.random.default_rng(0)
    train, held_out, special = {}, {}, {}
    for index in range(images_per_class):
        for place, synset in enumerate(synsets):
            name = f"{synset}_{7 * index + 18}.JPEG"
            kind = dict(enumerate(KINDS)).get(index * len(synsets) + place)
            if kind:
                special[kind] = name
            train[name] = synset, _encode(_crop(rng, place), kind)
    for place, synset in enumerate(synsets):
        lines = enumerate(labels.read_text().split(), 1)
        for number in [number for number, label in lines if label == synset][:validation]:
            name = f"ILSVRC2012_val_{number:08}.JPEG"
            held_out[name] = synset, _encode(_crop(rng, place), None)
    for split, images in (("train", train), ("val", held_out)):
        for name, (synset, content) in images.items():
            path = folder / "folders" / split / synset / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    classes = {
        f"{synset}.tar": _tar({n: data for n, (of, data) in sorted(train.items()) if of == synset})
        for synset in sorted(synsets)
    }
    flat = {name: content for name, (_, content) in sorted(held_out.items())}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(classes))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(flat))
    return Miniature(
        train_tar=folder / "ILSVRC2012_img_train.tar",
        val_tar=folder / "ILSVRC2012_img_val.tar",
        folders=folder / "folders",
        val_labels=labels,
        train={name: synset for name, (synset, _) in train.items()},
        validation={name: synset for name, (synset, _) in held_out.items()},
        special=special,
    )


def _crop(rng, place):
    """A part of one of two photographs; a class has a half of one for its own."""
    photo = load_sample_image(("china.jpg", "flower.jpg")[place % 2])  # (427, 640, 3)
    left = 320 * (place // 2 % 2) + rng.integers(320 - WIDTH)
    top = rng.integers(photo.shape[0] - HEIGHT)
    return Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH])


def _encode(image, kind):
    file = io.BytesIO()
    if kind == "png":
        image.save(file, "PNG")
    elif kind == "cmyk":
        image.convert("CMYK").save(file, "JPEG", quality=90)
    elif kind == "grey":
        image.convert("L").save(file, "JPEG", quality=90)
    elif kind == "broken_exif":  # one entry is announced, none is there
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        image.save(file, "JPEG", quality=90, exif=exif)
    else:
        image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _tar(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()
