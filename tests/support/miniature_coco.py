# SPDX-License-Identifier: Apache-2.0
"""A set in COCO's form with all that COCO's has: gaps between ids, crowds, an annotation without a
height, a greyscale image, images without annotations."""

import copy
import json

import numpy as np
from PIL import Image

CATEGORIES = [  # as in COCO's file: not in the order of the ids
    {"supercategory": "kitchen", "id": 47, "name": "cup"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
]
SIZES = {10: (48, 64), 20: (64, 40), 5: (40, 40), 30: (36, 50), 40: (31, 50)}  # height, width
GREY = 20


def rectangle(left, top, right, bottom):
    """A polygon that covers exactly the pixels from left and top up to right and bottom."""
    return [left, top, right, top, right, bottom, left, bottom]


def bitmap(height, width, *rectangles):
    mask = np.zeros((height, width), bool)
    for left, top, right, bottom in rectangles:
        mask[top:bottom, left:right] = True
    return mask


def runs(mask):
    """Lengths of runs down the columns, of zeros first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


CROWD = bitmap(64, 40, (0, 0, 7, 9), (20, 30, 40, 50))  # of image 20
RUNS = bitmap(48, 64, (30, 5, 50, 25))  # of image 10, object 3


def annotation(number, image, category, box, segmentation, crowd=0, area=None):
    return {
        "segmentation": segmentation,
        "area": box[2] * box[3] if area is None else area,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": list(box),
        "category_id": category,
        "id": number,
    }


_INSTANCES = {
    "info": {"description": 'a "set" with "annotations": [', "version": 1.0},
    "licenses": [{"id": 1, "name": "[]"}],
    "images": [
        {"license": 1, "file_name": f"{number:012}.jpg", "height": height, "width": width,
         "id": number} for number, (height, width) in SIZES.items()
    ],
    "annotations": [
        annotation(7, 20, 1, (5.25, 10, 10.5, 20), [rectangle(5, 10, 15, 30)]),
        annotation(3, 10, 47, (30, 5, 20, 20), runs(RUNS)),
        # Two parts of one object, which reaches beyond the right edge.
        annotation(9, 10, 3, (2, 2, 63.5, 40), [rectangle(2, 2, 20, 15),
                                                 rectangle(40, 30, 65.5, 42)], area=498),
        annotation(900100000020, 20, 1, (0, 0, 40, 50), runs(CROWD), crowd=1),
        annotation(918, 30, 3, (10, 20, 12.5, 0), [[10, 20, 22.5, 20, 15, 20]], area=0),
        annotation(4, 40, 3, (3, 3, 20, 20), [rectangle(3, 3, 23, 23)]),
    ],
    "categories": CATEGORIES,
}  # fmt: skip


def instances():
    """The JSON object of a split, to be changed at will."""
    return copy.deepcopy(_INSTANCES)


def pixels(number):
    """What the image shows, roughly: JPEG is lossy."""
    height, width = SIZES[number]
    ramp = np.add.outer(np.arange(height), np.arange(width)) + number
    colours = (ramp, 200 - ramp, np.full_like(ramp, number))
    return np.stack([ramp] * 3 if number == GREY else colours, -1).astype(np.uint8)


def write(root, train=None, val=None, year="2017"):
    """Writes annotations and images of the given splits; returns `root`."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("val", val)):
        if content is None:
            continue
        folder = root / f"{name}{year}"
        folder.mkdir(exist_ok=True)
        file = root / "annotations" / f"instances_{name}{year}.json"
        file.write_text(json.dumps(content))
        for number in SIZES:
            image = Image.fromarray(pixels(number))
            if number == GREY:
                image = image.convert("L")
            image.save(folder / f"{number:012}.jpg", quality=95)
    return root
