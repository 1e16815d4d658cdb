# SPDX-License-Identifier: Apache-2.0
"""Sets in COCO's form: what an example is, what is left out of it, and sets that cannot be used."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from support.miniature_coco import (
    RUNS,
    SIZES,
    annotation,
    bitmap,
    instances,
    pixels,
    rectangle,
    write,
)

from mambaout_jax.config import default_config
from mambaout_jax.data.sets.coco import open_coco
from mambaout_jax.data.sets.identity import Fingerprinted, identity
from mambaout_jax.data.sets.sources import DetectionImages, open_source
from mambaout_jax.metrics.coco import coco_metrics, encode_mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Only to be read."""
    return write(tmp_path_factory.mktemp("coco"), instances(), instances())


def by_id(source):
    return {source[index]["image_id"]: source[index] for index in range(len(source))}


# What an example is


def test_an_example_has_the_objects_of_its_image(root):
    source = open_coco(str(root), "validation")
    example = by_id(source)[10]
    assert set(example) == {"image", "boxes", "labels", "masks", "image_id"}
    # In the order of the file. The second reaches over the right edge: 2 + 63.5 > 64.
    np.testing.assert_array_equal(example["boxes"], [[30, 5, 50, 25], [2, 2, 64, 42]])
    np.testing.assert_array_equal(example["labels"], [2, 1])  # cup 47, car 3 of 1, 3, 47
    united = bitmap(48, 64, (2, 2, 20, 15), (40, 30, 64, 42))
    np.testing.assert_array_equal(example["masks"], [RUNS, united])
    assert {name: example[name].dtype for name in ("boxes", "labels", "masks")} == {
        "boxes": np.float32,
        "labels": np.int32,
        "masks": bool,
    }
    assert type(example["image_id"]) is int


@pytest.mark.parametrize("decoder", ["pillow", "opencv"])
def test_images_have_three_channels_also_where_they_are_grey(root, decoder):
    for number, example in by_id(open_coco(str(root), "validation", decoder=decoder)).items():
        image = np.asarray(example["image"])
        assert image.shape == (*SIZES[number], 3)
        assert np.abs(image.astype(int) - pixels(number)).mean() < 6
    grey = by_id(open_coco(str(root), "validation", 1, decoder))[20]["image"]
    assert np.asarray(grey).shape[:2] == (64, 40)


def test_the_set_says_what_it_holds_without_decoding(root):
    source = open_coco(str(root), "validation")
    assert isinstance(source, DetectionImages)
    assert source.class_names == ("person", "car", "cup")
    assert source.num_classes == 3
    assert source.category_ids == (1, 3, 47)
    assert source.image_sizes.tolist() == [list(size) for size in SIZES.values()]
    assert source.image_sizes.dtype == np.int32


# What is left out


def test_training_leaves_out_what_mmdet_leaves_out(root):
    source = open_coco(str(root), "train")
    # Not 5, which no annotation names, nor 40, whose shorter side has 31 pixels.
    assert [source[index]["image_id"] for index in range(len(source))] == [10, 20, 30]
    assert source.image_sizes.tolist() == [[48, 64], [64, 40], [36, 50]]
    examples = by_id(source)
    assert examples[20]["labels"].tolist() == [0]  # and not the crowd
    assert examples[20]["boxes"].tolist() == [[5.25, 10, 15.75, 30]]
    assert examples[30]["boxes"].shape == (0, 4)  # annotation 918 has no height
    assert examples[30]["masks"].shape == (0, 36, 50)
    assert examples[30]["labels"].shape == (0,)


def test_a_side_of_32_pixels_is_trained_on(tmp_path):
    content = instances()
    content["images"][4] |= {"height": 40, "width": 32}
    assert len(open_coco(str(write(tmp_path, content)), "train")) == 4


def test_validation_keeps_every_image_and_annotation(root):
    source = open_coco(str(root), "validation")
    assert [source[index]["image_id"] for index in range(len(source))] == list(SIZES)
    truth = source.ground_truth()
    given = instances()
    assert [image["id"] for image in truth["images"]] == list(SIZES)
    key = lambda one: one["id"]  # noqa: E731
    assert sorted(truth["annotations"], key=key) == sorted(given["annotations"], key=key)
    names = [{"id": one["id"], "name": one["name"]} for one in given["categories"]]
    assert truth["categories"] == sorted(names, key=key)
    assert json.loads(json.dumps(truth)) == truth


def test_evaluation_finds_its_own_ground_truth(tmp_path):
    content = instances()
    content["annotations"][0]["id"] = 0  # of an object, for pycocotools: no match
    content["annotations"][5]["segmentation"] = [[1, 2, 3, 4]]
    source = open_coco(str(write(tmp_path, None, content)), "validation")
    truth = source.ground_truth()
    found = []
    for example in by_id(source).values():
        for box, label, mask in zip(
            example["boxes"].tolist(), example["labels"], example["masks"], strict=True
        ):
            found.append(
                {
                    "image_id": example["image_id"],
                    "category_id": source.category_ids[label],
                    "score": 0.9,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": encode_mask(mask),
                }
            )
    # Person and cup are found; of three cars one, as the others cannot be: recalls of 0 to 0.33.
    for kind in ("bbox", "segm"):
        figures = coco_metrics(truth, found, kind)
        assert figures["ap"] == pytest.approx((1 + 1 + 34 / 101) / 3)


def test_ground_truth_of_training_is_that_of_its_images(root):
    truth = open_coco(str(root), "train").ground_truth()
    assert [image["id"] for image in truth["images"]] == [10, 20, 30]
    assert {one["image_id"] for one in truth["annotations"]} == {10, 20, 30}


def test_boxes_at_the_limits_of_the_filter(tmp_path):
    content = instances()
    outline = [rectangle(1, 1, 9, 9)]
    kept = {
        101: (63.9, 0, 5, 5),  # a tenth of a pixel is inside
        102: (-4.5, 10, 5, 5),
        103: (10, 47, 1, 1),
    }
    dropped = {
        201: (64, 0, 5, 5),  # begins where the image ends
        202: (-5, 10, 5, 5),
        203: (10, 48, 5, 5),
        204: (10, -6, 5, 5),
        205: (10, 10, 0.99, 5),
        206: (10, 10, 5, 0.99),
        207: (10, 10, 0, 5),
    }
    content["annotations"] = [
        annotation(number, 10, 1, box, outline) for number, box in {**kept, **dropped}.items()
    ]
    content["annotations"].append(annotation(208, 10, 1, (1, 1, 5, 5), outline, area=0))
    content["annotations"].append(annotation(209, 10, 1, (1, 1, 5, 5), [[1, 2, 3, 4]]))
    source = open_coco(str(write(tmp_path, content)), "train")
    (example,) = [source[index] for index in range(len(source))]
    expected = np.array([[63.9, 0, 64, 5], [0, 10, 0.5, 15], [10, 47, 11, 48]], np.float32)
    np.testing.assert_array_equal(example["boxes"], expected)
    assert example["masks"].shape == (3, 48, 64)


def test_what_is_left_out_is_counted_and_logged(tmp_path, caplog):
    content = instances()
    content["annotations"] += [
        annotation(50, 10, 1, (64, 0, 5, 5), [rectangle(1, 1, 9, 9)]),
        annotation(51, 10, 1, (70, 0, 5, 5), [rectangle(1, 1, 9, 9)]),
        annotation(52, 10, 1, (0, 0, 5, 5), []),
        annotation(53, 20, 1, (70, 0, 0, 5), [rectangle(1, 1, 9, 9)], crowd=1),
    ]
    caplog.set_level("INFO")
    root = write(tmp_path, content)
    open_coco(str(root), "train")
    file = root / "annotations" / "instances_train2017.json"
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: 1 annotations are not trained on as they have a side of less than a pixel or an "
        "area of 0, the first: annotation 918; evaluation counts them",
        f"{file}: 2 annotations are not trained on as they have a box outside of the image, the "
        "first: annotation 50; evaluation counts them",
        f"{file}: 1 annotations are not trained on as they have a mask without a polygon, the "
        "first: annotation 52; evaluation counts them",
        f"{file}: 2 of 5 images are not trained on: they have no annotations, or a side of less "
        "than 32 pixels",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3 + ["INFO"]


def test_a_config_opens_it_for_detection(root):
    config = default_config()
    config.data.source, config.data.path = "coco", str(root)
    config.data.decoder = "opencv"
    train = open_source(config.data, "train", "detection")
    assert isinstance(train[0]["image"], np.ndarray)  # decoded by OpenCV
    validation = open_source(config.data, "validation", "detection")
    assert isinstance(validation[0]["image"], Image.Image)
    with pytest.raises(ValueError, match=r"'coco' has examples for detection, not for"):
        open_source(config.data, "train", "classification")
    config.data.path = ""
    with pytest.raises(ValueError, match=r"DIR holds annotations/instances_train2017\.json"):
        open_source(config.data, "train", "detection")


# One set told from another


def test_identity_changes_with_whatever_is_trained_on(root, tmp_path):
    source = open_coco(str(root), "train")
    assert isinstance(source, Fingerprinted)
    known = identity(source)
    assert known["kind"] == "CocoFolders"
    assert known["examples"] == 3
    # Images with objects that are trained on: 20 has a person, 10 a car and a cup, 40 a car.
    assert known["classes"] == {"person": 1, "car": 2, "cup": 1}
    assert identity(pickle.loads(pickle.dumps(source))) == known

    def fingerprint_after(change):
        content = instances()
        change(content)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        return open_coco(str(write(tmp_path, content)), "train").fingerprint()

    assert fingerprint_after(lambda content: None) == known["fingerprint"]
    assert fingerprint_after(lambda content: content["licenses"].clear()) == known["fingerprint"]
    for change in (
        lambda content: content["annotations"][0].update(category_id=3),
        lambda content: content["annotations"][0].update(image_id=10),
        lambda content: content["annotations"][0].update(bbox=[5.25, 10, 10.5, 20.5]),
        lambda content: content["annotations"][0].update(area=211),
        lambda content: content["annotations"][0].update(iscrowd=1),
        lambda content: content["annotations"][0]["segmentation"][0].__setitem__(0, 5.01),
        lambda content: content["annotations"].pop(),
        lambda content: content["images"].pop(2),
        lambda content: content["images"].reverse(),
        lambda content: (
            content["categories"][0].update(id=46)
            or content["annotations"][1].update(category_id=46)
        ),
    ):
        assert fingerprint_after(change) != known["fingerprint"]


def test_it_can_be_sent_to_another_process(root):
    source = open_coco(str(root), "train")
    there = pickle.loads(pickle.dumps(source))
    assert len(there) == len(source)
    for index in range(len(source)):
        for name, value in source[index].items():
            np.testing.assert_array_equal(np.asarray(there[index][name]), np.asarray(value))


# Sets that cannot be used


def test_an_image_of_another_size_is_named(tmp_path):
    write(tmp_path, None, instances())
    file = tmp_path / "annotations" / "instances_val2017.json"
    photo = tmp_path / "val2017" / "000000000020.jpg"
    source = open_coco(str(tmp_path), "validation")
    Image.new("RGB", (41, 64)).save(photo)
    with pytest.raises(
        ValueError,
        match=r"^000000000020\.jpg has 64 x 41 pixels \(height x width\), and "
        f"{re.escape(str(file))} says 64 x 40; give the images that the annotations were made on",
    ):
        source[1]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 64)).save(photo, exif=turned)
    with pytest.raises(ValueError, match=r"has 40 x 64 pixels .* says 64 x 40; an orientation in"):
        source[1]


def test_nothing_to_train_on_is_an_error(tmp_path):
    content = instances()
    content["annotations"] = content["annotations"][-1:]  # of an image that is too small
    write(tmp_path, content, content)
    with pytest.raises(ValueError, match=r"has no image to train on: each has no annotations, or"):
        open_coco(str(tmp_path), "train")
    assert len(open_coco(str(tmp_path), "validation")) == 5
