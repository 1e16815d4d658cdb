# SPDX-License-Identifier: Apache-2.0
"""UperNet against float64 numpy and mmseg's numbers; parameters and multiply-accumulates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import input_of
from jax.sharding import NamedSharding, PartitionSpec
from support import oracles
from support.dense_goldens import load_dense
from support.goldens import logit_error
from support.variables import randomised

from mambaout_jax.analysis.cost import count
from mambaout_jax.backbone import Features, Pyramid
from mambaout_jax.heads.neck import make_neck
from mambaout_jax.heads.upernet import (
    TORCH_NAMES,
    AuxiliaryHead,
    Segmenter,
    UperNetHead,
)
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.resize import mean_pool_to
from mambaout_jax.models import create_backbone
from mambaout_jax.models.dense import create_segmenter
from mambaout_jax.weights.torch_names import torch_tensors


class Steps(Pyramid):
    """A pyramid of means of squares, with too few channels to take any time."""

    depths: tuple[int, ...] = (1, 1, 1, 1)
    dims: tuple[int, ...] = (3, 3, 3, 3)

    def forward(self, images, train):
        sizes = [tuple(-(-n // s) for n in images.shape[1:3]) for s in self.strides]
        return Features(tuple(mean_pool_to(images, size) for size in sizes))


def resized(x, size):
    """Bilinear between outer edges, one pixel after the other."""
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    places = []
    for n, m in zip(x.shape[1:3], size, strict=True):
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        places.append((low, np.minimum(low + 1, n - 1), at - low))
    (top, bottom, down), (left, right, across) = places
    for i, j in np.ndindex(*size):
        upper = x[:, top[i], left[j]] * (1 - across[j]) + x[:, top[i], right[j]] * across[j]
        lower = x[:, bottom[i], left[j]] * (1 - across[j]) + x[:, bottom[i], right[j]] * across[j]
        y[:, i, j] = upper * (1 - down[i]) + lower * down[i]
    return y


def pooled(x, k):
    """Means over windows [floor(i n / k), ceil((i + 1) n / k))."""
    y = np.zeros((x.shape[0], k, k, x.shape[-1]))
    rows, columns = ([(i * n // k, -(-(i + 1) * n // k)) for i in range(k)] for n in x.shape[1:3])
    for i, j in np.ndindex(k, k):
        y[:, i, j] = x[:, slice(*rows[i]), slice(*columns[j])].mean((1, 2))
    return y


def in_numpy(variables, maps, pool_sizes):
    """The head in float64, with running moments, written from mmseg's description."""
    p, s = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables[name])
        for name in ("params", "batch_stats")
    )

    def conv(name, x, side):
        y = oracles.strided_conv(x, p[name]["conv"]["kernel"], 1, side // 2)
        norm, running = p[name]["norm"], s[name]["norm"]
        y = (y - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        return np.maximum(y * norm["scale"] + norm["bias"], 0)

    *fine, last = maps
    parts = [last]
    for i, k in enumerate(pool_sizes):
        parts.append(resized(conv(f"pool_{i}", pooled(last, k), 1), last.shape[1:3]))
    top = conv("bottleneck", np.concatenate(parts, -1), 3)
    levels = [conv(f"lateral_{i}", x, 1) for i, x in enumerate(fine)] + [top]
    for i in (3, 2, 1):
        levels[i - 1] = levels[i - 1] + resized(levels[i], levels[i - 1].shape[1:3])
    outs = [conv(f"fpn_{i}", levels[i], 3) for i in range(3)] + [top]
    joined = np.concatenate([resized(x, outs[0].shape[1:3]) for x in outs], -1)
    return conv("fusion", joined, 3) @ p["classifier"]["kernel"][0, 0] + p["classifier"]["bias"]


def test_head_equals_numpy_on_odd_maps(rng):
    shapes = (9, 11, 3), (5, 6, 4), (3, 3, 5), (2, 2, 6)
    maps = [rng.standard_normal((2, *shape)) for shape in shapes]
    given = tuple(jnp.asarray(x, jnp.float32) for x in maps)
    head = UperNetHead(7, channels=4)
    variables = randomised(head, given)
    expected = in_numpy(variables, maps, (1, 2, 3, 6))
    logits = jax.jit(head.apply)(variables, given)
    assert logits.shape == (2, 9, 11, 7)
    assert logit_error(logits, expected) < 5e-6


def filled(modules, state_dict):
    """Variables of the heads from tensors in the reference's own names."""
    names = [
        (p, n.replace(".bn", ".batch_norm").replace("conv_seg", "classifier"))
        for p, n in TORCH_NAMES
    ]
    variables = {}
    for name, module, inputs in modules:
        shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
        for collection, tree in shapes.items():
            variables.setdefault(collection, {})[name] = tree
    flat = {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    tensors = torch_tensors(names, flat)
    assert set(tensors) == set(state_dict)
    tree = {}
    for key, tensor in tensors.items():
        for path, value in zip(tensor.paths, tensor.from_torch(state_dict[key]), strict=True):
            node = tree
            for part in (path[1], path[0], *path[2:-1]):
                node = node.setdefault(part, {})
            node[path[-1]] = value
    return tree


@pytest.mark.goldens
@pytest.mark.optimised
@pytest.mark.parametrize("sizes", ["even", "odd", "wide"])
def test_heads_equal_those_of_mmseg(sizes):
    arrays, meta, state_dict = load_dense("upernet")
    dims = (96, 192, 384, 576)
    shapes = [(1, dim, *size) for dim, size in zip(dims, meta["maps"][sizes], strict=True)]
    maps = tuple(
        jnp.asarray(input_of(shape, level).transpose(0, 2, 3, 1))
        for level, shape in enumerate(shapes)
    )
    head, auxiliary = UperNetHead(), AuxiliaryHead()
    modules = [("head", head, maps), ("auxiliary", auxiliary, maps[2])]
    variables = filled(modules, state_dict)

    def run(variables, maps):
        logits, kept = head.apply(
            variables["head"], maps, capture_intermediates=True, mutable="intermediates"
        )
        return logits, auxiliary.apply(variables["auxiliary"], maps[2]), kept["intermediates"]

    logits, second, kept = jax.jit(run)(variables, maps)
    assert logit_error(logits[..., ::15], arrays[f"{sizes}_decode"].transpose(0, 2, 3, 1)) < 5e-5
    if sizes != "wide":  # the golden has none
        expected = arrays[f"{sizes}_auxiliary"].transpose(0, 2, 3, 1)
        assert logit_error(second[..., ::15], expected) < 5e-5
    psp = jax.nn.relu(kept["bottleneck"]["__call__"][0])[..., ::64]
    assert logit_error(psp, arrays[f"{sizes}_psp"].transpose(0, 2, 3, 1)) < 5e-5


# Heads' multiply-accumulates in all, and what the paper's Table 3 prints.
TABLE = {
    "mambaout_tiny": (54_050_636, 844_479_135_744, 938),
    "mambaout_small": (75_993_612, 844_479_135_744, 1032),
    "mambaout_base": (112_204_136, 847_269_068_800, 1178),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_are_those_of_table_3(name):
    """The paper's counter adds five operations for each number that a layer norm reads."""
    parameters, of_heads, printed = TABLE[name]
    backbone = create_backbone(name)
    segmenter = create_segmenter(name)
    shape = (512, 2048, 3)
    normalised = []

    def note(function, args, kwargs, context):
        if type(context.module) is LayerNorm:
            normalised.append(args[0].size)
        return function(*args, **kwargs)

    with nn.intercept_methods(note):
        cost = count(segmenter, shape)
    assert cost.parameters == parameters
    assert cost.macs - count(backbone, shape).macs == of_heads
    assert round((cost.macs + 5 * sum(normalised)) / 1e9) == printed


def small_segmenter(dtype=jnp.float32):
    backbone = Steps(dtype=dtype)
    head, auxiliary = UperNetHead(5, 4, dtype=dtype), AuxiliaryHead(5, 3, dtype=dtype)
    return Segmenter(backbone, make_neck(backbone, dtype), head, auxiliary)


def test_dropout_takes_whole_channels(rng):
    x = jnp.asarray(1 + rng.random((4, 3, 3, 6)), jnp.float32)
    head = AuxiliaryHead(5, 64, dropout=0.5)
    variables = randomised(head, x)
    _, kept = head.apply(
        variables, x, True, rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, (nn.Dropout, BatchNorm)),
    )  # fmt: skip
    norm, out = (np.asarray(kept["intermediates"][n]["__call__"][0]) for n in ("norm", "dropout"))
    dropped = (out == 0).all((1, 2), keepdims=True)
    assert 0.35 < dropped.mean() < 0.65
    np.testing.assert_allclose(out, np.where(dropped, 0, 2 * np.maximum(norm, 0)), rtol=1e-6)


def test_training_gives_both_logits_and_moments_of_the_global_batch(rng):
    """Eight devices give what one gives, up to rounding: as with mmseg's SyncBN."""
    segmenter = small_segmenter()
    means = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)  # those of one device are far off
    images = means + rng.standard_normal((8, 37, 50, 3), np.float32)
    variables = randomised(segmenter, images)
    assert {*variables["params"]} == {"neck", "head", "auxiliary"}  # this backbone has none

    @jax.jit
    def run(variables, images):
        return segmenter.apply(
            variables, images, True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
        )

    one = run(variables, images)
    (logits, auxiliary), updated = one
    assert logits.shape == (8, 10, 13, 5)
    assert auxiliary.shape == (8, 3, 4, 5)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), updated["batch_stats"], variables["batch_stats"]
    )
    assert min(jax.tree.leaves(moved)) > 1e-6
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    eight = run(jax.device_put(variables, NamedSharding(mesh, PartitionSpec())), spread)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_dtypes(rng):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    narrow = small_segmenter(jnp.bfloat16)
    variables = jax.eval_shape(narrow.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    head = narrow.head.clone(parent=None)
    maps = tuple(jax.ShapeDtypeStruct((1, n, n, 3), jnp.bfloat16) for n in (8, 4, 2, 1))
    inner = {name: tree["head"] for name, tree in variables.items()}
    assert jax.eval_shape(head.apply, inner, maps).dtype == jnp.bfloat16
    assert jax.eval_shape(narrow.apply, variables, images).dtype == jnp.float32
    with jax.enable_x64():
        wide = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), (variables, images)
        )
        assert jax.eval_shape(small_segmenter().apply, *wide).dtype == jnp.float64
