# SPDX-License-Identifier: Apache-2.0
"""What all preparations share, with text files for shards."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

import pytest

from mambaout_jax.data.prepare.resumable import (
    bar,
    check_out,
    check_sizes,
    check_space,
    claim,
    in_order,
    share_out,
    write_shards,
)


class Item(NamedTuple):
    name: str
    path: str = "somewhere"
    size: int = 10


def items(count):
    return [Item(f"{index}.jpg") for index in range(count)]


def write(path: Path, members: list[Item]) -> None:
    path.write_text(" ".join(member.name for member in members))


def check(path: Path, members: list[Item]) -> int:
    if path.read_text().split() != [member.name for member in members]:
        raise ValueError(f"{path} is damaged")
    return len(members)


def test_order_is_by_hash_and_no_name_is_there_twice():
    one = in_order(items(20), "This")
    assert one == in_order(items(20)[::-1], "This")
    assert sorted(one) == sorted(items(20))
    assert one != items(20)
    twice = [*items(3), Item("1.jpg", "elsewhere")]
    with pytest.raises(ValueError, match=r"1\.jpg is there twice, in .* and .*; This's file names"):
        in_order(twice, "This")


def test_shards_share_all_members_evenly(tmp_path):
    members = items(10)
    shards = share_out(members, 34, lambda index, count: tmp_path / f"{index} of {count}")
    assert [path.name for path in shards] == ["0 of 3", "1 of 3", "2 of 3"]
    assert [len(part) for part in shards.values()] == [3, 4, 3]
    assert [member for part in shards.values() for member in part] == members
    large = share_out(members[:2], 1, lambda index, count: tmp_path / f"{index} of {count}")
    assert [len(part) for part in large.values()] == [1, 1]  # never one without a member


def test_only_missing_shards_are_written_and_all_are_checked(tmp_path):
    parts = {tmp_path / f"{number}": items(number) for number in (1, 2, 3)}
    (tmp_path / "2").write_text("0.jpg 1.jpg")
    before = (tmp_path / "2").stat().st_mtime_ns
    with bar() as progress:
        found = write_shards({"train": parts}, write, check, progress, 1)
        assert found == {"train": [1, 2, 3]}
        assert (tmp_path / "2").stat().st_mtime_ns == before
        (tmp_path / "2").write_text("0.jpg")
        with pytest.raises(ValueError, match="2 is damaged"):
            write_shards({"train": parts}, write, check, progress, 1)


def test_a_folder_belongs_to_what_it_was_begun_with(tmp_path):
    work = tmp_path / "set" / "1.0.0.incomplete"
    claim(work, {"train": 3}, 100, ["a", "b", "c"])
    claim(work, {"train": 3}, 100, iter(["a", "b", "c"]))
    for images, shard_bytes, contents in (
        ({"train": 2}, 100, ["a", "b", "c"]),
        ({"train": 3}, 101, ["a", "b", "c"]),
        ({"train": 3}, 100, ["a", "c", "b"]),
    ):
        with pytest.raises(
            ValueError, match=r"was made from another source \(of {'train': 3} images, now"
        ):
            claim(work, images, shard_bytes, contents)
    (work / "source.json").unlink()
    (work / "file").touch()
    with pytest.raises(ValueError, match="was not made by this command"):
        claim(work, {"train": 3}, 100, ["a", "b", "c"])


def test_what_was_left_is_removed_and_a_full_disk_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "shard.17.tmp").touch()
    (tmp_path / "there").touch()
    shards = {"train": {tmp_path / "there": items(9), tmp_path / "missing": items(3)}}
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 70, 30))
    check_space(tmp_path, shards)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 71, 29))
    with pytest.raises(ValueError, match=r"needs 0\.0 GB more, and its disk has 0\.0 GB free"):
        check_space(tmp_path, shards)


def test_empty_files_and_places_that_cannot_be_written_are_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"1 of the 3 images of the train split are empty .*x\.jpg"
    ):
        check_sizes("train", [*items(2), Item("x.jpg", size=0)])
    check_sizes("train", items(2))
    check_out(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot be made: .*file is a file"):
        check_out(tmp_path / "file" / "out")
