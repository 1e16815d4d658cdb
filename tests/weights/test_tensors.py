# SPDX-License-Identifier: Apache-2.0
"""What the names and sizes of tensors tell before a model is made of them."""

import numpy as np
import pytest

from mambaout_jax.weights.load import save_variables
from mambaout_jax.weights.tensors import named_in_torch, tensors_of, trained_image_size


def test_paths_have_slashes_and_names_of_torch_have_none():
    assert named_in_torch({"stem.conv1.weight": np.zeros(1)})
    assert not named_in_torch({"params/backbone/stem/conv1/kernel": np.zeros(1)})


@pytest.mark.parametrize(
    ("name", "key", "length", "options", "size"),
    [
        ("deit_tiny_patch16_224", "pos_embed", 1 + 14 * 14, {}, 224),
        ("deit_tiny_patch16_224", "params/backbone/pos_embed", 1 + 24 * 24, {}, 384),
        ("deit_tiny_patch16_224", "pos_embed", 1 + 3 * 5, {"image_size": (48, 80)}, (48, 80)),
        ("deit_tiny_patch16_224", "norm.weight", 192, {}, None),
        ("mambaout_tiny", "pos_embed", 196, {}, None),
    ],
)
def test_table_of_positions_tells_the_size_of_images(name, key, length, options, size):
    assert trained_image_size(name, {key: np.zeros((1, length, 192))}, options) == size


def test_numbers_that_are_none_are_refused_with_the_source(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_variables({"params": {"a": np.float32([1, np.nan])}}, path)
    with pytest.raises(ValueError, match=r"^the run: these weights hold NaN .*: params/a; "):
        tensors_of("the run", path, ema=True)
