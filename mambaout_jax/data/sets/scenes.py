# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits on photographs, for detection and segmentation: no download, drawn on demand.

The digits and the two photographs come with scikit-learn. As every pixel is placed here, masks,
boxes and label maps are exact. The sets hold what real ones trip over, too: images without objects,
portrait formats, occlusion, objects cut by the border, and in validation regions of a crowd.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.identity import fingerprint

KINDS = ("detection", "segmentation")
COUNTS = {"train": 1000, "validation": 100}
MIN_SIZE = 32  # pixels
MIN_VISIBLE = 32  # pixels of an object: with fewer it is none

_VERSION = 1  # of what is drawn
_LONG = 5 / 4  # longer side over shorter
_MOST_OBJECTS = 8
_SIDES = (3 / 32, 7 / 8)  # of a digit's square, over the shorter side of the image
_MIN_SIDE = 14  # pixels, of a digit's square
_INK = 0.45  # grey level, of 1, above which a digit's pixel is drawn
_PHOTOS = ("china.jpg", "flower.jpg")
_TRAINING_PART = 0.65  # of the width of each photograph, from the left; the rest is for validation
_CROWD_OBJECTS = 8


class Scenes:
    """Scenes of 0 to 8 digits on parts of photographs; see `sources` for both protocols.

    Three in four are landscape, (image_size, 5/4 image_size), the fourth is portrait. One in 16 is
    empty, and one in 10 of validation has a crowd: several digits of one class in one region, which
    no example holds and `ground_truth` tells. Digits are 3/32 to 7/8 of the shorter side, small
    ones in front; those with fewer than 32 visible pixels are no objects, though their pixels have
    a class. Drawing takes 2 ms at 256 pixels.

    Scene i depends on the split, i and the size alone. Training and validation share neither digits
    (those of `Digits`) nor parts of photographs.

    Args:
        split: "train" (1,000 scenes) or "validation" (100).
        kind: "detection": ten classes, the digits; "segmentation": eleven, 0 being what is no
            digit.
        image_size: shorter side in pixels, from 32.
        channels: 3.

    Raises:
        ValueError: `kind`, `image_size` or `channels` is not allowed.
        FileNotFoundError: the photographs of scikit-learn are missing.
    """

    def __init__(
        self, split: str, kind: str = "detection", image_size: int = 256, channels: int = 3
    ):
        if channels != 3:
            raise ValueError(
                f"channels={channels}: scenes are in colour; set --config.data.channels=3"
            )
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is not known; allowed are {KINDS}")
        if image_size < MIN_SIZE:
            raise ValueError(
                f"image_size={image_size} leaves no room for digits; set --config.data.image_size "
                f"to {MIN_SIZE} or more"
            )
        self._split, self._kind, self._size = split, kind, image_size
        digits = Digits(split)
        self._digits = [digits[index] for index in range(len(digits))]
        self._photos = [_photo_part(name, split) for name in _PHOTOS]
        numbers = np.arange(COUNTS[split])
        long, short = round(_LONG * image_size), image_size
        sizes = np.where((numbers % 4 == 1)[:, None], (long, short), (short, long))
        self.image_sizes: Int[np.ndarray, "N 2"] = sizes.astype(np.int32)
        names = digits.class_names
        self.class_names = names if kind == "detection" else ("other", *names)
        self.num_classes = len(self.class_names)
        self.category_ids = tuple(range(1, 1 + self.num_classes))

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self._scene(range(len(self))[index])
        if self._kind == "segmentation":
            return {"image": scene.pixels, "labels": scene.classes}
        masks = scene.masks
        return {
            "image": scene.pixels,
            "boxes": np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4),
            "labels": scene.labels,
            "masks": masks,
            "image_id": range(len(self))[index],
        }

    def ground_truth(self) -> dict[str, Any]:
        """All objects and crowds of all scenes in COCO's form, masks as uncompressed runs."""
        annotations = []
        for index in range(len(self)):
            scene = self._scene(index)
            objects = [(int(label), mask, 0) for label, mask in zip(*scene[1:3], strict=True)]
            if scene.crowd is not None:
                objects.append((*scene.crowd, 1))
            for label, mask, is_crowd in objects:
                left, top, right, bottom = box_of(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes 0 for none
                        "image_id": index,
                        "category_id": self.category_ids[label],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": int(mask.sum()),
                        "iscrowd": is_crowd,
                        "segmentation": runs_of(mask),
                    }
                )
        images = [
            {"id": index, "height": int(height), "width": int(width), "file_name": f"{index}.png"}
            for index, (height, width) in enumerate(self.image_sizes)
        ]
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def images_per_class(self) -> dict[str, int | None]:
        """See `identity.Fingerprinted`."""
        return dict.fromkeys(self.class_names)

    def fingerprint(self) -> str:
        """See `identity.Fingerprinted`: what the scenes depend on."""
        return fingerprint([f"{self._split} {self._kind} {self._size}"], [_VERSION])

    def _scene(self, index: int) -> "_Scene":
        # RandomState, not Generator: numpy guarantees its stream forever, so scenes never change.
        random = np.random.RandomState([_VERSION, list(COUNTS).index(self._split), index])
        height, width = self.image_sizes[index].tolist()
        photo = self._photos[random.randint(len(self._photos))]
        canvas = _Canvas(_background(photo, height, width, random))
        count = 0 if index % 16 == 7 else random.randint(1, _MOST_OBJECTS + 1)
        low, high = max(_SIDES[0] * self._size, _MIN_SIDE), _SIDES[1] * self._size
        sides = np.exp(random.uniform(np.log(low), np.log(high), count)).astype(int)
        for side in np.sort(sides)[::-1].tolist():
            digit = self._digits[random.randint(len(self._digits))]
            top, left = (random.randint(-side // 4, n - 3 * side // 4) for n in (height, width))
            canvas.paste(digit, side, top, left, _tint(random))
        if self._split == "validation" and index % 10 == 5:
            canvas.crowd_from = len(canvas.masks)
            self._paste_crowd(canvas, int(low), random)
        return canvas.scene()

    def _paste_crowd(self, canvas: "_Canvas", side: int, random: np.random.RandomState) -> None:
        """Several digits of one class near each other, in front of all else."""
        label = random.randint(10)
        members = [digit for digit in self._digits if digit["label"] == label]
        height, width = canvas.pixels.shape[:2]
        centre = random.uniform(0.3, 0.7, 2) * (height, width)
        for _ in range(_CROWD_OBJECTS):
            corner = centre + random.uniform(-1.8, 0.8, 2) * side
            top, left = np.clip(corner, 0, (height - side, width - side)).astype(int).tolist()
            canvas.paste(members[random.randint(len(members))], side, top, left, _tint(random))


class _Scene(NamedTuple):
    """What is to be seen: masks are of visible pixels.

    Attributes:
        pixels: the image.
        labels, masks: of each object, without those of a crowd.
        classes: of each pixel, 0 for none, else 1 + the digit.
        crowd: label and mask of all its digits; None: there is none.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    labels: Int[np.ndarray, "n"]
    masks: Bool[np.ndarray, "n H W"]
    classes: UInt8[np.ndarray, "H W"]
    crowd: tuple[int, Bool[np.ndarray, "H W"]] | None


class _Canvas:
    """A scene that is being drawn.

    Attributes:
        pixels: so far.
        masks: of all digits so far, covered or not.
        crowd_from: the first digit of a crowd; None: there is none.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "H W 3"]):
        self.pixels = pixels
        self.masks: list[Bool[np.ndarray, "H W"]] = []
        self.crowd_from: int | None = None
        self._labels: list[int] = []
        self._classes = np.zeros(pixels.shape[:2], np.uint8)

    def paste(
        self, digit: dict[str, Any], side: int, top: int, left: int, tint: Int[np.ndarray, "3"]
    ) -> None:
        """Draws a digit in front of all else, in a square that may reach beyond the border."""
        grey = np.asarray(digit["image"].resize((side, side), Image.Resampling.BILINEAR))
        height, width = self.pixels.shape[:2]
        grey = grey[max(0, -top) : height - top, max(0, -left) : width - left]
        ink = grey > _INK * 255
        place = np.s_[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
        self.pixels[place][ink] = grey[ink, None] * tint // 255
        self._classes[place][ink] = 1 + digit["label"]
        mask = np.zeros((height, width), bool)
        mask[place] = ink
        self.masks.append(mask)
        self._labels.append(digit["label"])

    def scene(self) -> _Scene:
        covered = np.zeros(self.pixels.shape[:2], bool)
        visible = []
        for mask in reversed(self.masks):
            visible.append(mask & ~covered)
            covered |= mask
        visible = visible[::-1]
        end = len(visible) if self.crowd_from is None else self.crowd_from
        crowd = None
        if end < len(visible):
            crowd = self._labels[end], np.logical_or.reduce(visible[end:])
        kept = [i for i in range(end) if visible[i].sum() >= MIN_VISIBLE]
        labels = np.array([self._labels[i] for i in kept], np.int32)
        masks = np.array([visible[i] for i in kept], bool).reshape(-1, *covered.shape)
        return _Scene(self.pixels, labels, masks, self._classes, crowd)


def box_of(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of what is true, in pixels; x2 and y2 are one more than the last pixel's."""
    across, down = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def runs_of(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's uncompressed runs: down the columns, the first one of zeros."""
    columns = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    return {"counts": np.diff(changes, prepend=0, append=columns.size).tolist(),
            "size": list(mask.shape)}  # fmt: skip


def _tint(random: np.random.RandomState) -> Int[np.ndarray, "3"]:
    """A vivid colour: one channel is full, one is empty."""
    colour = random.uniform(size=3)
    return (255 * (colour - colour.min()) / np.ptp(colour)).astype(int)


def _background(
    photo: Image.Image, height: int, width: int, random: np.random.RandomState
) -> UInt8[np.ndarray, "height width 3"]:
    """A random part of a photograph, mirrored or not, resized."""
    fitting = min(photo.height / height, photo.width / width)
    factor = fitting * random.uniform(0.5, 1)
    top = random.uniform(0, photo.height - factor * height)
    left = random.uniform(0, photo.width - factor * width)
    box = (left, top, left + factor * width, top + factor * height)
    pixels = np.array(photo.resize((width, height), Image.Resampling.BILINEAR, box))
    return pixels[:, ::-1].copy() if random.randint(2) else pixels


@functools.cache
def _photo_part(name: str, split: str) -> Image.Image:
    spec = importlib.util.find_spec("sklearn")
    path = Path(str(spec and spec.origin)).parent / "datasets" / "images" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, one of the photographs that come with scikit-learn; install it "
            "again: pip install --force-reinstall scikit-learn"
        )
    photo = Image.open(path).convert("RGB")
    border = round(_TRAINING_PART * photo.width)
    left, right = (0, border) if split == "train" else (border, photo.width)
    return photo.crop((left, 0, right, photo.height))
