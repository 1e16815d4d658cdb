# SPDX-License-Identifier: Apache-2.0
"""One rule for which files count: names, links, what is left out; the folders of splits."""

import os

import pytest

from mambaout_jax.data.sets.listing import (
    images_below,
    images_by_class,
    is_image,
    listed,
    shown,
    split_folder,
)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_suffixes_count_in_any_case_and_hidden_files_do_not():
    images = ["a.JPEG", "b.jpg", "c.jfif", "d.JPE", "e.avif", "f.ppm", "g.webp", "h.tar.png"]
    assert all(map(is_image, images))
    assert not any(map(is_image, ["c.txt", ".d.png", "._d.jpg", "e", "jpg", "f.heic"]))


def test_predictions_and_classes_list_by_one_rule(tmp_path):
    touch(tmp_path / "a", "1.png", "2.PNG", "deep/er/3.jpg", "folder.jpg/4.png")
    touch(tmp_path / "a", ".5.png", "._6.jpg", ".ipynb_checkpoints/7.png", "__MACOSX/8.png")
    os.mkfifo(tmp_path / "a" / "9.png")
    (tmp_path / "a" / "10.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "11.png").symlink_to("1.png")
    (tmp_path / "a" / "12.png").symlink_to("12.png")
    want = ["1.png", "11.png", "2.PNG", "deep/er/3.jpg", "folder.jpg/4.png"]
    assert images_below(tmp_path / "a") == want
    assert images_by_class(tmp_path, tmp_path) == {"a": [f"a/{name}" for name in want]}


def test_what_is_left_out_is_counted_once(tmp_path, caplog):
    touch(tmp_path, "a/1.png", "a/2.heic", "a/3.HEIC", "a/labels", "a/.hidden", "a/Thumbs.db")
    touch(tmp_path, "b/1.png", "beside.jpg", "README.md")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    for _ in range(2):
        images_by_class(tmp_path, tmp_path)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"5 files in {tmp_path} are not used (2 .heic, 1 in no class folder, 1 neither files nor "
        "folders, or links to nothing, 1 without a suffix); images are files below"
    )


@pytest.mark.parametrize("target", [".", "deep", "deep/er"])
def test_links_in_a_circle_add_nothing(tmp_path, target):
    touch(tmp_path, "a/1.png", "a/deep/2.png", "a/deep/er/3.png", "b/1.png")
    (tmp_path / "a" / "0loop").symlink_to(target)
    (tmp_path / "a" / "deep" / "loop").symlink_to("../deep")
    (tmp_path / "a" / "deep" / "er" / "loop").symlink_to("../..")
    want = ["a/1.png", "a/deep/2.png", "a/deep/er/3.png"]
    assert images_by_class(tmp_path, tmp_path) == {"a": want, "b": ["b/1.png"]}
    assert images_below(tmp_path / "a") == [name[2:] for name in want]


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    touch(tmp_path, "set/a/1.png", "store/x/2.png", "store/b/3.png")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "store" / "b")
    found = images_by_class(tmp_path / "set", tmp_path / "set")
    assert found == {"a": ["a/1.png", "a/more/2.png"], "b": ["b/3.png"]}


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("a/up", "..", "a/up leads to .*, which holds the folders of this set"),
        ("a/up", "../..", "a/up leads to .*, which holds the folders of this set"),
        ("c", ".", "c leads to .*, which holds the folders of this set"),
        ("a/other", "../b", "b and .*a/other are the same folder, .* in two classes"),
        ("a/other", "../b/deep", "b/deep and .*a/other are the same folder"),
        ("c", "a", "c and .*a are the same folder"),
        ("b/deep/er", "../../a", "b/deep/er and .*a are the same folder"),
    ],
)
def test_links_that_would_change_a_label_are_refused(tmp_path, link, target, words):
    root = touch(tmp_path / "set", "a/1.png", "b/2.png", "b/deep/3.png")
    (root / link).symlink_to(target)
    with pytest.raises(ValueError, match=words):
        images_by_class(root, root)


def test_a_prediction_does_not_leave_its_folder_upwards(tmp_path):
    touch(tmp_path, "photos/1.png", "2.png")
    (tmp_path / "photos" / "up").symlink_to("..")
    with pytest.raises(ValueError, match="photos/up leads to"):
        images_below(tmp_path / "photos")


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_splits_are_found_by_any_of_their_names(tmp_path, split, case):
    names = {
        "train": ("train", "training"),
        "validation": ("val", "validation", "valid", "dev", "eval", "test", "testing"),
    }
    for name in names[split]:
        root = tmp_path / name
        (root / case(name)).mkdir(parents=True)
        (root / "others").mkdir()
        assert split_folder(root, split) == root / case(name)
        other = "validation" if split == "train" else "train"
        assert split_folder(root, other) is None


def test_a_test_folder_counts_where_there_is_no_other(tmp_path):
    for name in ("Test", "dev"):
        (tmp_path / name).mkdir()
    assert split_folder(tmp_path, "validation") == tmp_path / "dev"
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"holds dev/ and val/, and any of them could be the"):
        split_folder(tmp_path, "validation")


def test_names_are_shown_as_one_can_print_them():
    assert shown("größe 猫") == "größe 猫"
    assert shown("a\nb\x1b[1m") == "a\\nb\\x1b[1m"
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_long_lists_of_names_are_cut():
    assert listed("abc") == "'a', 'b', 'c'"
    assert listed(map(str, range(1007)), most=2) == "'0', '1' and 1,005 more"
