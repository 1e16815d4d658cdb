# SPDX-License-Identifier: Apache-2.0
"""Shards as one sequence of records, and what is said of damaged ones."""

import importlib.util
import pickle

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mambaout_jax.data.sets.image_files import UnreadableImageError
from mambaout_jax.data.sets.records import Records

RECORDS = [bytes([number]) * (300 + number) for number in range(7)]


@pytest.fixture
def shards(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path, records in zip(paths, (RECORDS[:3], RECORDS[3:]), strict=True):
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
    return paths


def test_records_follow_one_another(shards):
    records = Records(shards, "make it")
    for found in (records, pickle.loads(pickle.dumps(records))):
        assert len(found) == 7
        assert [found[index] for index in (6, 0, 3, 2)] == [RECORDS[i] for i in (6, 0, 3, 2)]


def test_a_damaged_record_is_named_and_the_others_are_read(shards):
    content = bytearray(shards[1].read_bytes())
    content[content.index(RECORDS[4]) + 100] ^= 1
    shards[1].write_bytes(content)
    records = Records(shards, "make it")
    with pytest.raises(
        UnreadableImageError, match=rf"^cannot read record 4 of {shards[0].parent}: "
    ):
        records[4]
    assert [records[index] for index in (3, 5)] == [RECORDS[3], RECORDS[5]]


def test_a_damaged_shard_is_answered_with_what_makes_it(shards):
    shards[0].write_bytes(b"x" * 70_000)
    with pytest.raises(
        ValueError, match=r"^a shard of .* is damaged \(.*\); copy the folder again, .*: make it$"
    ):
        Records(shards, "make it")


def test_the_missing_package_is_named(shards, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "array_record" else find(name)
    )
    with pytest.raises(
        ModuleNotFoundError, match=r"array_record, .*pip install 'mambaout-jax\[data"
    ):
        Records(shards, "make it")
