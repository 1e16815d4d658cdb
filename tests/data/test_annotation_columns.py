# SPDX-License-Identifier: Apache-2.0
"""Annotations as files: the same content, not copied into memory, and damage."""

import dataclasses
import json
import re

import numpy as np
import pytest
from support.miniature_coco import instances

from mambaout_jax.data.sets.annotation_columns import load_columns, save_columns
from mambaout_jax.data.sets.annotations import read_annotations


@pytest.fixture
def annotations(tmp_path):
    content = instances()
    content["categories"][0]["name"] = "杯"
    file = tmp_path / "instances_val2017.json"
    file.write_text(json.dumps(content))
    return read_annotations(file)


def columns_of(annotations):
    columns = {**vars(annotations), **vars(annotations.masks)}
    del columns["masks"]
    return columns


def test_columns_come_back_as_they_were(annotations, tmp_path):
    save_columns(annotations, tmp_path / "columns")
    found = load_columns(tmp_path / "columns")
    assert found.masks.take(np.arange(2)).kinds.tolist() == annotations.masks.kinds[:2].tolist()
    for name, value in columns_of(annotations).items():
        column = columns_of(found)[name]
        if isinstance(value, np.ndarray):
            assert column.dtype == value.dtype, name
            # Of the file, and not of this process.
            assert isinstance(column, np.memmap), name
        np.testing.assert_array_equal(column, value, name)
    everything = np.arange(len(annotations.image_ids))
    assert found.to_json(everything) == annotations.to_json(everything)


def test_a_missing_column_is_named(annotations, tmp_path):
    for field in dataclasses.fields(annotations.masks):
        save_columns(annotations, tmp_path / "columns")
        file = tmp_path / "columns" / f"mask_{field.name}.npy"
        file.unlink()
        with pytest.raises(
            FileNotFoundError,
            match=rf"^{re.escape(str(file))} is missing; copy the prepared set again, or prepare",
        ):
            load_columns(tmp_path / "columns")


@pytest.mark.parametrize("name", ["names.json", "boxes.npy", "mask_words.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x93NUMPY\x01\x00v\x00", b"[1]"])
def test_a_damaged_file_is_named(annotations, tmp_path, name, content):
    save_columns(annotations, tmp_path / "columns")
    (tmp_path / "columns" / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^the annotations in .*columns are damaged \(.*; copy the prepared set"
    ):
        load_columns(tmp_path / "columns")


def test_a_truncated_column_is_damaged(annotations, tmp_path):
    save_columns(annotations, tmp_path / "columns")
    file = tmp_path / "columns" / "areas.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"are damaged \("):
        load_columns(tmp_path / "columns")
