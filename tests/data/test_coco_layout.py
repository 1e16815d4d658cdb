# SPDX-License-Identifier: Apache-2.0
"""Where the files of a set in COCO's form may be, and what is said where they are not."""

import re
import shutil

import pytest
from support.miniature_coco import instances, write

from mambaout_jax.data.sets.coco import open_coco


@pytest.mark.parametrize("year", ["", "2014", "_mine"])
@pytest.mark.parametrize("images", ["", "images"])
def test_other_sets_have_their_own_names(tmp_path, year, images):
    write(tmp_path, instances(), instances(), year)
    if images:
        (tmp_path / images).mkdir()
        for name in ("train", "val"):
            (tmp_path / f"{name}{year}").rename(tmp_path / images / f"{name}{year}")
    assert len(open_coco(str(tmp_path), "train")) == 3
    assert len(open_coco(str(tmp_path), "validation")) == 5


def test_of_several_years_2017_counts(tmp_path):
    other = instances()
    other["images"].pop()
    other["annotations"].pop()
    write(tmp_path, other, other, "2014")
    write(tmp_path, instances(), instances(), "2017")
    assert len(open_coco(str(tmp_path), "validation")) == 5
    write(tmp_path, other, other, "2015")
    for name in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{name}2017.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"instances_val2014\.json and instances_val2015\.json, and any of them could be the "
        "validation split; move the others away",
    ):
        open_coco(str(tmp_path), "validation")


def test_a_split_alone_can_be_evaluated(tmp_path):
    write(tmp_path, None, instances())
    assert len(open_coco(str(tmp_path), "validation")) == 5
    with pytest.raises(FileNotFoundError, match=r"has no annotations of the train split"):
        open_coco(str(tmp_path), "train")


@pytest.mark.parametrize("year", ["2017", "_in_folders"])
def test_missing_images_are_counted_when_the_set_is_opened(tmp_path, year):
    content = instances()
    for image in content["images"]:
        image["file_name"] = f"{'deep/' if year != '2017' else ''}{image['file_name']}"
    write(tmp_path, None, content, year)
    folder = tmp_path / f"val{year}"
    if year != "2017":
        (folder / "deep").mkdir()
        for image in folder.glob("*.jpg"):
            image.rename(folder / "deep" / image.name)
    assert len(open_coco(str(tmp_path), "validation")) == 5
    for name in ("000000000005.jpg", "000000000040.jpg"):
        next(folder.rglob(name)).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"^2 of the 5 images that .*instances_val{year}\.json lists are missing from "
        rf"{re.escape(str(folder))}, the first: .*000000000005\.jpg; unpack them again, or remove",
    ):
        open_coco(str(tmp_path), "validation")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_splits_with_other_categories_are_refused(tmp_path, split):
    content = instances()
    content["categories"][1]["name"] = "human"
    write(tmp_path, instances(), content)
    with pytest.raises(
        ValueError,
        match=r"instances_val2017\.json has other categories than .*instances_train2017\.json, so "
        r"that labels would mean two things \(classes that are gone: .*person.*; new classes: "
        r".*human.*\); give both files the same list",
    ):
        open_coco(str(tmp_path), split)
    content["categories"][1] |= {"name": "person", "id": 2}
    content["annotations"] = [one | {"category_id": 3} for one in content["annotations"]]
    write(tmp_path, instances(), content)
    with pytest.raises(ValueError, match=r"\(their ids differ\)"):
        open_coco(str(tmp_path), split)


def test_splits_may_list_the_categories_in_another_order(tmp_path):
    content = {"categories": None, **instances()}
    content["categories"] = content["categories"][::-1]
    content["categories"][0]["name"] = "a [b] c"
    train = instances()
    train["categories"][2]["name"] = "a [b] c"
    write(tmp_path, train, content)
    assert open_coco(str(tmp_path), "validation").class_names == ("person", "a [b] c", "cup")


def emptied(root, name):
    for path in (root / name).iterdir():
        path.unlink()
    (root / name).rmdir()


@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (shutil.rmtree, FileNotFoundError, r"data\.path=.* does not exist; data\.source"),
        (lambda root: shutil.rmtree(root) or root.write_text(""), FileNotFoundError,
         r"data\.path=.* is a file; data\.source='coco' looks for"),
        (lambda root: emptied(root, "annotations"), FileNotFoundError,
         r"has no annotations of the validation split: .*/annotations/instances_val2017\.json is "
         r"not there; data\.source='coco' looks for .*instances_train2017\.json and .*mambaout "
         "prepare coco --folder COCO --out DIR"),
        (lambda root: emptied(root, "val2017"), FileNotFoundError,
         r"holds annotations/instances_val2017\.json and no images for it: neither val2017/ nor "
         "images/val2017/ is there; unpack them, or link to them"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text('{"images": ['),
         ValueError, r"instances_val2017\.json is truncated"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text(""),
         ValueError, r"instances_val2017\.json is truncated"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_set_says_what_is_wanted(tmp_path, damage, error, sentence):
    root = write(tmp_path / "coco", instances(), instances())
    damage(root)
    with pytest.raises(error, match=sentence):
        open_coco(str(root), "validation")
