# SPDX-License-Identifier: Apache-2.0
"""Leaves by name: described, compared, and read back only as what they were written as."""

import binascii

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoint_states import make_mesh, make_shardings

from mambaout_jax.runtime import leaves
from mambaout_jax.runtime.checkpoint import Checkpointer

VALUES = {
    "params": {"kernel": np.arange(64 * 16, dtype=np.float32).reshape(64, 16)},
    "counts": (np.arange(24, dtype=np.uint8), np.array(7, np.int32)),
}
NAMES = ["counts/0", "counts/1", "params/kernel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The item "state" of a checkpoint with these values."""
    directory = tmp_path_factory.mktemp("leaves")
    with Checkpointer(directory, keep=1) as checkpointer:
        checkpointer.save(1, jax.tree.map(jnp.asarray, VALUES), {})
    return directory / "1" / "state"


@pytest.fixture
def table():
    return leaves.describe(leaves.flatten(VALUES))


def test_names_are_paths_in_the_order_of_the_state():
    assert list(leaves.flatten(VALUES)) == NAMES


def test_table_has_the_crc32_of_the_bytes_in_c_order(table):
    kernel = VALUES["params"]["kernel"]
    row = {"shape": [64, 16], "dtype": "float32", "crc32": binascii.crc32(kernel.tobytes())}
    assert table["params/kernel"] == row
    assert leaves.describe({"x": kernel.T.copy().T})["x"] == row


def test_a_part_of_the_leaves_can_be_read(folder, table):
    (found,) = leaves.read(folder, table, {"params/kernel": None}).items()
    assert found[0] == "params/kernel"
    np.testing.assert_array_equal(found[1], VALUES["params"]["kernel"])


def test_leaves_are_placed_as_asked(folder, table):
    shardings = leaves.flatten(make_shardings(VALUES, make_mesh(2, 4)))
    found = leaves.read(folder, table, shardings)
    assert {name: x.sharding for name, x in found.items()} == shardings
    for shard in found["params/kernel"].addressable_shards:
        np.testing.assert_array_equal(shard.data, VALUES["params"]["kernel"][shard.index])


@pytest.mark.parametrize(("key", "value"), [("dtype", "int32"), ("shape", [16, 64])])
def test_a_leaf_that_is_stored_as_something_else_is_refused(folder, table, key, value):
    table["params/kernel"][key] = value  # of as many bytes
    with pytest.raises(ValueError, match=r"params/kernel is float32\[64, 16\], and was written as"):
        leaves.read(folder, table, {"params/kernel": None})


def test_a_missing_leaf_is_an_error(folder, table):
    table["params/bias"] = table["params/kernel"]
    with pytest.raises(ValueError, match="params/bias"):
        leaves.read(folder, table, dict.fromkeys(["params/kernel", "params/bias"]))


def test_long_lists_of_wrong_leaves_are_cut(table):
    many = {f"leaf_{i:02}": np.array(i) for i in range(12)}
    other = leaves.describe({name: np.array(99) for name in many})
    with pytest.raises(ValueError, match=r"differs of leaf_00, .*leaf_09 and 2 more$"):
        leaves.check(many, other)
