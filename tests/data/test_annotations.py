# SPDX-License-Identifier: Apache-2.0
"""COCO's JSON as columns: the same content as `json` reads, and what is said of bad files."""

import json
import re

import numpy as np
import pytest
from support.miniature_coco import CROWD, RUNS, instances, rectangle, runs

from mambaout_jax.data.sets.annotations import read_annotations


@pytest.fixture
def written(tmp_path):
    def write(content):
        file = tmp_path / "instances_val2017.json"
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def everything(annotations):
    return annotations.to_json(np.arange(len(annotations.image_ids)))


def plain(content):
    """What of a JSON object counts, objects in the order of their images."""
    places = [image["id"] for image in content["images"]]
    return {
        "images": [
            {key: image[key] for key in ("id", "file_name", "height", "width")}
            for image in content["images"]
        ],
        "annotations": sorted(
            content["annotations"], key=lambda one: places.index(one["image_id"])
        ),
        "categories": [
            {"id": one["id"], "name": one["name"]}
            for one in sorted(content["categories"], key=lambda one: one["id"])
        ],
    }


@pytest.mark.parametrize("order", [None, sorted, lambda keys: sorted(keys, reverse=True)])
@pytest.mark.parametrize("indent", [None, 1])
def test_columns_hold_what_json_reads(written, order, indent):
    content = instances()
    for annotation in content["annotations"]:
        annotation["attributes"] = {"images": [1, {"annotations": "]"}]}
    keys = order(content) if order else list(content)
    text = json.dumps({key: content[key] for key in keys}, indent=indent)
    expected = plain(instances())
    assert everything(read_annotations(written(text))) == expected


def test_columns_are_ordered_by_image_and_by_id(written):
    annotations = read_annotations(written(instances()))
    assert annotations.class_names == ("person", "car", "cup")
    assert annotations.category_ids == (1, 3, 47)
    assert annotations.image_ids.tolist() == [10, 20, 5, 30, 40]
    assert annotations.first.tolist() == [0, 2, 4, 4, 5, 6]
    assert annotations.ids.tolist() == [3, 9, 7, 900100000020, 918, 4]
    assert annotations.labels.tolist() == [2, 1, 0, 0, 1, 1]
    assert annotations.images_of().tolist() == [0, 0, 1, 1, 3, 4]
    assert annotations.image_sizes[1].tolist() == [64, 40]
    assert annotations.file_name(1) == "000000000020.jpg"
    assert annotations.crowd.tolist() == [False] * 3 + [True] + [False] * 2
    np.testing.assert_array_equal(annotations.masks.bitmaps([0], 48, 64)[0], RUNS)
    np.testing.assert_array_equal(annotations.masks.bitmaps([3], 64, 40)[0], CROWD)


def test_names_may_be_of_any_language_and_crowds_unsaid(written):
    content = instances()
    content["categories"][0]["name"] = "杯子"
    content["images"][0]["file_name"] = "été/杯.jpg"
    del content["annotations"][0]["iscrowd"]
    annotations = read_annotations(written(json.dumps(content, ensure_ascii=False)))
    assert annotations.class_names[2] == "杯子"
    assert annotations.file_name(0) == "été/杯.jpg"
    assert not annotations.crowd[2]


def test_an_object_of_id_0_is_not_handed_to_pycocotools(written):
    content = instances()
    content["annotations"][1]["id"] = 0
    annotations = read_annotations(written(content))
    assert [one["id"] for one in everything(annotations)["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_a_truncated_file_is_named(written):
    text = json.dumps(instances())
    for end in [*range(60), *range(60, len(text) - 1, 37), len(text) - 1]:
        file = written(text[:end])
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(file))} is truncated, or is no JSON in UTF-8"
        ):
            read_annotations(file)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r" is truncated, or is no JSON in UTF-8 \(IndexError"),
        ("<html>", r" is truncated, or is no JSON .*'\{' is expected.*; copy or download it again"),
        ("[]", " is a JSON array, so it is no file of COCO's instances: those, such as"),
        ("{}", " has no 'images' and no 'annotations' and no 'categories', so it is no file of"),
        ('{"images": [], "info": {}}', " has no 'annotations' and no 'categories', so it is no"),
        ('{"images": {}}', "^the 'images' of .*json are no array, so it is no file of COCO's"),
    ],
)
def test_a_file_that_is_not_coco_says_what_is_wanted(written, content, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        read_annotations(written(content))
    assert "instances_val2017.json" in str(raised.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "instances_val2017.json"
    file.write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    with pytest.raises(ValueError, match=r"val2017\.json is truncated, or is no JSON in UTF-8"):
        read_annotations(file)


def changed(kind, place, **changes):
    def change(content):
        content[kind][place] |= changes

    return change


def without(kind, place, key):
    return lambda content: content[kind][place].pop(key)


def repeated(kind):
    return lambda content: content[kind].append(dict(content[kind][0]))


BOX = {"bbox": [1, 2, 3, 4]}
NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        # Images
        (lambda content: content.update(images=[]), "lists no images: there is nothing in it"),
        (repeated("images"), "2 images have the id 10; give each its own"),
        (changed("images", 1, height=0), "image 20 has no height or no width; correct the file"),
        (changed("images", 1, id="20"), r"image 20 cannot be used \(.*\); correct or remove it"),
        (changed("images", 1, width=40.5), r"image 20 cannot be used \(.*\); correct or remove it"),
        (without("images", 1, "width"), "image 20 has no 'width'; a set for detection with masks"),
        (changed("images", 1, file_name=3), r"image 20 cannot be used \(.*\); correct or remove"),
        (lambda content: content["images"].append(7), r"an image cannot be used \("),
        # Categories
        (lambda content: content.update(categories=[]), "lists no categories; add them"),
        (repeated("categories"), "2 categories have the id 47; give each its own"),
        (changed("categories", 1, name="cup"), "2 categories have the name cup; give each its own"),
        (changed("categories", 1, id="1"), r'a category is not like {"id": 1, "name": "person"}'),
        (without("categories", 1, "name"), r'a category is not like {"id": 1, "name": "person"}'),
        # What annotations refer to
        (lambda content: content.update(annotations=[]), "lists no annotations: there is nothing"),
        (repeated("annotations"), "2 annotations have the id 7; give each its own"),
        (changed("annotations", 1, image_id=11),
         r"annotation 3 names the image 11, which the file does not list \(1 such annotations in "
         r"all\); add it, or remove them"),
        (changed("annotations", 1, category_id=2),
         r"annotation 3 names the category 2, which the file does not list \(1 such annotations in "
         r"all\); add it, or remove them"),
        (changed("annotations", 1, category_id=91), "names the category 91, which the file does"),
        (changed("annotations", 1, image_id="10"), r"annotation 3 cannot be used \(.*\); correct"),
        # Boxes
        (changed("annotations", 1, bbox=[30, 5, -20, 20]),
         r"annotation 3 has a negative width or height \(bbox \[30\.0, 5\.0, -20\.0, 20\.0\], x y "
         r"width height; area 400\.0; 1 such annotations in all\); correct or remove them"),
        (changed("annotations", 1, bbox=[30, 5, 20, -1e-9]), "annotation 3 has a negative width"),
        (changed("annotations", 1, bbox=[NAN, 5, 20, 20]),
         r"annotation 3 has numbers that are not finite \(bbox \[nan, 5\.0, 20\.0, 20\.0\]"),
        (changed("annotations", 1, bbox=[30, 5, float("inf"), 20]), "that are not finite"),
        (changed("annotations", 1, area=NAN), r"annotation 3 has numbers that are not finite"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"annotation 3 .*\(its bbox has 3 numbers"),
        (changed("annotations", 1, bbox=[1, 2, 3, "4"]), r"annotation 3 cannot be used \("),
        (changed("annotations", 1, bbox=None), r"annotation 3 cannot be used \("),
        # Masks
        (without("annotations", 1, "segmentation"),
         "annotation 3 has no 'segmentation'; a set for detection with masks needs it in each: "
         "correct the file, or give the one of the instances"),
        (without("annotations", 1, "bbox"), "annotation 3 has no 'bbox'; a set for detection"),
        (without("annotations", 1, "id"), "an annotation has no 'id'; a set for detection"),
        (changed("annotations", 1, segmentation=[1, 2, 3, 4, 5, 6]),
         r"annotation 3 cannot be used \(it is no list of polygons \[\[x, y, x, y, \.\.\.\]\]\)"),
        (changed("annotations", 1, segmentation=[[1, 2, 3, 4, 5, NAN]]),
         r"annotation 3 cannot be used \(it holds nan, which is no number\); correct or remove it"),
        (changed("annotations", 1, segmentation=runs(RUNS.T)),
         r"the mask of annotation 3 is for 64 x 48 pixels \(height x width\) and its image has 48 "
         r"x 64 \(1 such annotations in all\); correct or remove them"),
        (changed("annotations", 1, segmentation={"counts": [48 * 65], "size": [48, 65]}),
         "the mask of annotation 3 is for 48 x 65 pixels"),
        (changed("annotations", 1, segmentation={"counts": [5], "size": [48, 64]}),
         r"annotation 3 cannot be used \(its runs cover 5 pixels, and 48 x 64 are 3,072\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_the_file(written, change, sentence):
    content = instances()
    change(content)
    file = written(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}.*{sentence}"):
        read_annotations(file)


def test_polygons_of_two_points_are_left_out_and_counted(written, caplog):
    content = instances()
    kept = rectangle(2, 2, 20, 15)
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4], kept]
    content["annotations"][5]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
    file = written(content)
    annotations = read_annotations(file)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{file}: 2 annotations have polygons of fewer than three points or of an odd length, "
        "which are left out of their masks, the first: annotation 9"
    )
    segmentations = {
        one["id"]: one["segmentation"] for one in everything(annotations)["annotations"]
    }
    assert segmentations[9] == [kept]
    assert segmentations[4] == {"counts": [31 * 50], "size": [31, 50]}
