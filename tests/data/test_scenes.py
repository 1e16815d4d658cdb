# SPDX-License-Identifier: Apache-2.0
"""Scenes of digits: their objects are what is to be seen, and COCO's tools read their masks."""

import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from mambaout_jax.config import default_config
from mambaout_jax.data.sets import scenes
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.identity import Fingerprinted
from mambaout_jax.data.sets.scenes import Scenes
from mambaout_jax.data.sets.sources import DetectionImages, SegmentationImages, open_source

# NumPy 2 warns of the arrays that pycocotools returns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CROWDED = range(5, 100, 10)
EMPTY = range(7, 100, 16)


@pytest.fixture(scope="module")
def validation():
    return Scenes("validation", "detection", 64)


@pytest.fixture(scope="module")
def examples(validation):
    return [validation[index] for index in range(100)]


@pytest.fixture(scope="module")
def truth(validation):
    return validation.ground_truth()


def bitmap(annotation):
    form = annotation["segmentation"]
    return coco_masks.decode(coco_masks.frPyObjects(form, *form["size"])).astype(bool)


def test_sizes_are_known_without_drawing(validation, examples):
    assert validation.image_sizes.dtype == np.int32
    for (height, width), example in zip(validation.image_sizes, examples, strict=True):
        assert example["image"].shape == (height, width, 3)
        assert example["masks"].shape[1:] == (height, width)
    sizes = [tuple(size) for size in validation.image_sizes.tolist()]
    assert (sizes.count((64, 80)), sizes.count((80, 64))) == (75, 25)


def test_objects_have_tight_boxes_around_what_is_visible(examples):
    for index, example in enumerate(examples):
        boxes, labels, masks = (example[name] for name in ("boxes", "labels", "masks"))
        assert (boxes.dtype, labels.dtype, masks.dtype) == (np.float32, np.int32, bool)
        assert len(boxes) == len(labels) == len(masks) <= 8
        assert example["image_id"] == index
        assert masks.sum(axis=0).max(initial=0) <= 1  # nothing is seen through anything
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert len(rows) >= 32
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert not any(len(examples[index]["labels"]) for index in EMPTY)
    assert sum(len(example["labels"]) for example in examples) > 250


def test_label_maps_say_the_class_of_the_same_pixels(examples):
    maps = Scenes("validation", "segmentation", 64)
    assert (maps.num_classes, maps.class_names[:3]) == (11, ("other", "0", "1"))
    for index in (0, 1, *CROWDED[:2], EMPTY[0]):
        found, example = maps[index], examples[index]
        np.testing.assert_array_equal(found["image"], example["image"])
        assert found["labels"].dtype == np.uint8
        for label, mask in zip(example["labels"], example["masks"], strict=True):
            assert (found["labels"][mask] == label + 1).all()
    assert not maps[EMPTY[0]]["labels"].any()


def test_ground_truth_has_every_object_with_runs_that_coco_reads(validation, examples, truth):
    objects = [one for one in truth["annotations"] if not one["iscrowd"]]
    position = 0
    for index, example in enumerate(examples):
        for label, box, mask in zip(
            *(example[k] for k in ("labels", "boxes", "masks")), strict=True
        ):
            found = objects[position]
            assert found["image_id"] == index
            assert validation.category_ids[label] == found["category_id"]
            x, y, w, h = found["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            assert found["area"] == mask.sum()
            np.testing.assert_array_equal(bitmap(found), mask)
            position += 1
    assert position == len(objects)
    assert [one["id"] for one in truth["annotations"]] == [*range(1, 1 + len(truth["annotations"]))]
    assert [(one["id"], one["name"]) for one in truth["categories"]][::9] == [(1, "0"), (10, "9")]
    sizes = [(one["height"], one["width"]) for one in truth["images"]]
    np.testing.assert_array_equal(sizes, validation.image_sizes)


def test_crowds_are_in_the_ground_truth_of_validation_alone(examples, truth):
    crowds = [one for one in truth["annotations"] if one["iscrowd"]]
    assert [one["image_id"] for one in crowds] == [*CROWDED]
    maps = Scenes("validation", "segmentation", 64)
    for crowd in crowds:
        index, mask = crowd["image_id"], bitmap(crowd)
        assert crowd["area"] == mask.sum() > 2 * 32
        assert not (mask & examples[index]["masks"].any(axis=0)).any()
        assert (maps[index]["labels"][mask] == crowd["category_id"]).all()
    training = Scenes("train", "detection", 32)
    assert all(training._scene(index).crowd is None for index in CROWDED)


def test_scenes_depend_on_split_index_and_size_alone(examples):
    again = pickle.loads(pickle.dumps(Scenes("validation", "detection", 64)))
    for index in (42, 5, 0, -1):
        for name, array in again[index].items():
            np.testing.assert_array_equal(array, examples[index][name])
    training = Scenes("train", "detection", 64)
    assert len(training) == 1000
    assert not np.array_equal(training[0]["image"], examples[0]["image"])
    with pytest.raises(IndexError):
        training[1000]
    prints = {
        Scenes(*arguments).fingerprint()
        for arguments in (
            ("train", "detection", 64), ("train", "detection", 96), ("validation", "detection", 64)
        )
    }  # fmt: skip
    assert len(prints) == 3
    assert isinstance(training, Fingerprinted)


def test_splits_draw_other_scenes(examples):
    train = Scenes("train", "detection", 64)
    counts = [len(train[index]["labels"]) for index in range(20)]
    assert counts != [len(example["labels"]) for example in examples[:20]]


def test_small_digits_are_in_front_of_large_ones(validation, monkeypatch):
    sides = []
    paste = scenes._Canvas.paste
    monkeypatch.setattr(
        scenes._Canvas,
        "paste",
        lambda canvas, digit, side, *place: (
            sides.append(side) or paste(canvas, digit, side, *place)
        ),
    )
    for index in (0, 1, 2, 3):  # without a crowd
        sides.clear()
        validation[index]
        assert sides
        assert sides == sorted(sides, reverse=True)


def test_an_object_has_as_many_visible_pixels_as_it_needs(validation, examples, monkeypatch):
    index = next(i for i, example in enumerate(examples) if len(example["masks"]) > 1)
    areas = sorted(examples[index]["masks"].sum((1, 2)).tolist())
    monkeypatch.setattr(scenes, "MIN_VISIBLE", areas[0])
    assert len(validation[index]["masks"]) == len(areas)
    monkeypatch.setattr(scenes, "MIN_VISIBLE", areas[0] + 1)
    assert len(validation[index]["masks"]) < len(areas)


def test_splits_share_no_part_of_a_photograph():
    for name in ("china.jpg", "flower.jpg"):
        parts = [scenes._photo_part(name, split) for split in ("train", "validation")]
        assert [part.size for part in parts] == [(416, 427), (224, 427)]


def test_a_digit_is_enlarged_bilinearly_and_cut_at_its_ink():
    digit = Digits("train")[0]
    small = np.asarray(digit["image"]).astype(float)
    canvas = scenes._Canvas(np.full((60, 50, 3), 7, np.uint8))
    canvas.paste(digit, 44, -6, 20, np.array([255, 100, 0]))
    position = np.clip((np.arange(44) + 0.5) * 8 / 44 - 0.5, 0, 7)
    low = np.minimum(position.astype(int), 6)
    spread = np.zeros((44, 8))
    spread[np.arange(44), low] = 1 - (position - low)
    spread[np.arange(44), low + 1] += position - low
    grey = (spread @ small @ spread.T)[6:, :30]  # above and to the right of the image
    scene = canvas.scene()
    sure = abs(grey - 0.45 * 255) > 1.5
    (mask,) = scene.masks
    assert not mask[38:].any()
    assert not mask[:, :20].any()
    np.testing.assert_array_equal(mask[:38, 20:][sure], (grey > 0.45 * 255)[sure])
    np.testing.assert_array_equal(scene.pixels[~mask], 7)
    want = (grey[..., None] * [255, 100, 0] / 255)[mask[:38, 20:]]
    np.testing.assert_allclose(scene.pixels[mask], want, atol=2)


def test_open_source_gives_the_protocol_of_the_task():
    data = default_config().data
    data.source, data.image_size = "scenes", 64
    found = open_source(data, "train", "detection")
    assert isinstance(found, DetectionImages)
    assert found.image_sizes.min() == 64
    maps = open_source(data, "validation", "segmentation")
    assert isinstance(maps, SegmentationImages)
    assert len(maps) == 100
    with pytest.raises(ValueError, match="'scenes' has examples for detection and segmentation"):
        open_source(data, "train")


def test_scenes_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match=r"kind='depth' is not known; allowed are \('detection'"):
        Scenes("train", "depth")
    with pytest.raises(ValueError, match=r"image_size=31 .*image_size to 32 or more"):
        Scenes("train", "detection", 31)
    with pytest.raises(ValueError, match=r"channels=1: .*data\.channels=3"):
        Scenes("train", "detection", 64, 1)


def test_missing_photographs_are_told(monkeypatch, tmp_path):
    spec = type("spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda _: spec)
    scenes._photo_part.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"china\.jpg is missing.*force-reinstall"):
        scenes._photo_part("china.jpg", "train")
