# SPDX-License-Identifier: Apache-2.0
"""How rules name parameters; whole models are tested by their goldens."""

import numpy as np
import pytest

from mambaout_jax.weights.torch_names import Tensor, torch_name, torch_tensors

RULES = (
    (r"backbone/(\w+_token)", r"\1"),
    (r"backbone/block_0*(\d+)/(\w+)", r"blocks.\1.\2"),
    (r"backbone/ssm/path_\d/A_log", r"A_logs", "concatenated"),
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("params/backbone/cls_token", "cls_token"),
        ("params/backbone/block_007/fc1/kernel", "blocks.7.fc1.weight"),
        ("params/backbone/block_10/norm/scale", "blocks.10.norm.weight"),
        ("batch_stats/backbone/block_00/norm/var", "blocks.0.norm.running_var"),
        ("params/backbone/block_00/gamma", "blocks.0.gamma"),  # of the block itself
    ],
)
def test_rules_match_a_parameter_or_its_layer(path, name):
    assert torch_name(tuple(path.split("/")), RULES) == (name, None)


def test_parameter_that_no_rule_names_is_an_error():
    path = ("params", "backbone", "registers")
    with pytest.raises(ValueError, match="no name for the parameter params/backbone/registers"):
        torch_tensors(RULES, {path: np.zeros((1, 1, 6))})


def test_two_parameters_of_one_name_are_an_error_unless_they_are_joined():
    paths = [("params", "backbone", name, "kernel") for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"one name, x\.weight, for params/backbone/b/kernel and"):
        torch_tensors(((r"backbone/\w", "x"),), dict.fromkeys(paths, np.zeros((2, 2))))


@pytest.mark.parametrize(
    ("shape", "layout", "element", "there"),
    [
        ((2, 3), None, (1, 2), (2, 1)),
        ((5, 1, 3), None, (4, 0, 2), (2, 0, 4)),
        ((5, 7, 2, 3), None, (4, 6, 1, 2), (2, 1, 4, 6)),
        ((2, 3), "pointwise", (1, 2), (2, 1, 0, 0)),
        ((5, 7, 2, 3), "filter", (4, 6, 1, 2), (2, 4, 6, 1)),
    ],
)
def test_kernels_are_laid_out_as_in_pytorch(rng, shape, layout, element, there):
    value = rng.standard_normal(shape)
    path = ("params", "layer", "kernel")
    rule = ("layer", "layer") if layout is None else ("layer", "layer", layout)
    tensor = torch_tensors((rule,), {path: value})["layer.weight"]
    laid_out = tensor.to_torch([value])
    assert laid_out[there] == value[element]
    assert laid_out.shape == tensor.torch_shape
    np.testing.assert_array_equal(tensor.from_torch(laid_out)[0], value)


def test_joined_tensors_keep_the_order_of_their_paths(rng):
    values = {
        ("params", "backbone", "ssm", f"path_{k}", "A_log"): rng.standard_normal((3, 2))
        for k in (1, 0, 2)
    }
    tensor = torch_tensors(RULES, values)["A_logs"]
    joined = tensor.to_torch([values[path] for path in tensor.paths])
    for k in range(3):
        expected = values[("params", "backbone", "ssm", f"path_{k}", "A_log")]
        np.testing.assert_array_equal(joined[3 * k : 3 * k + 3], expected)
    for path, part in zip(tensor.paths, tensor.from_torch(joined), strict=True):
        np.testing.assert_array_equal(part, values[path])


def test_any_leaf_of_channels_may_be_a_map_in_pytorch(rng):
    value = rng.standard_normal(3)
    path = ("params", "scale", "gamma")
    tensor = torch_tensors((("scale/gamma", "sigma", "map"),), {path: value})["sigma"]
    laid_out = tensor.to_torch([value])
    assert laid_out.shape == tensor.torch_shape == (1, 3, 1, 1)
    np.testing.assert_array_equal(tensor.from_torch(laid_out)[0], value)


@pytest.mark.parametrize("layout", ["stacked", "concatenated"])
def test_joined_tensors_are_contiguous_as_files_take_for_granted(layout, rng):
    paths = tuple(("params", f"path_{i}", "kernel") for i in range(2))
    parts = [rng.standard_normal((3, 4)) for _ in paths]
    tensor = Tensor(paths, ((3, 4),) * 2, layout).to_torch(parts)
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor.reshape(2, 4, 3)[1], parts[1].T)
