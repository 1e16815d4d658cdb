# SPDX-License-Identifier: Apache-2.0
"""Names of tensors that are no paths, and damage of safetensors files."""

import numpy as np
import pytest
import safetensors.numpy
from support.weight_files import FILES

from mambaout_jax.weights.files import read_safetensors, unflatten
from mambaout_jax.weights.load import load_pretrained, read_variables


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("params", "params/x"), "'params/x' shares its name with another or with a folder"),
        (("params/x/y", "params/x"), "'params/x' shares its name"),
        (("params/x", "params/x/y/z"), "'params/x/y/z' shares its name"),
        (("", "/"), "the tensor '' has a name with an empty part"),
        (("params//x",), "'params//x' has a name with an empty part"),
        (("/params",), "'/params' has a name"),
        (("params/",), "'params/' has a name"),
    ],
)
def test_names_that_are_no_paths_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        unflatten(dict.fromkeys(names, 0))
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(dict.fromkeys(names, np.zeros(1, np.float32)), path)
    for read in (read_variables, lambda path: load_pretrained(path, "mambaout_tiny")):
        with pytest.raises(ValueError, match=r"x\.safetensors: the tensor '"):
            read(path)


def test_paths_become_a_tree():
    assert unflatten({"a/b": 1, "a/c/d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_damaged_and_foreign_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(9)}, path)
    whole = path.read_bytes()
    for raw in (whole[:-1], whole[:20], whole.replace(b"data_offsets", b"data_0ffsets")):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
            read_safetensors(path)
    with pytest.raises(ValueError, match=r"is a file of torch\.save, not a safetensors"):
        read_safetensors(FILES / "views.pth")
