# SPDX-License-Identifier: Apache-2.0
"""Every model against what its public PyTorch implementation computed (see goldens/fill.py).

A golden is `goldens/<family>/<model>.npz`; a family's smallest runs by default where its mechanism
(statistics, relative positions, a scan's routes, …) is one that no other default golden has.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from goldens.fill import input_of
from support.goldens import MODELS, load, logit_error, model_of

from mambaout_jax.backbone import subtree
from mambaout_jax.models import create_model, find_variant, list_models
from mambaout_jax.weights.convert import from_torch, namings, to_torch

pytestmark = pytest.mark.long

DEFAULT = {
    "mambaout/test_mambaout",
    "deit/deit_tiny_patch16_224",
    "fasternet/fasternet_t1",
    "swin/swin_tiny_patch4_window7_224",
}
TOLERANCE = 5e-5  # of the standard deviation of what is compared
# SG-Former sorts tokens by numbers that are nearly equal. In float32 rounding decides which comes
# first, and no two programs agree on it: 0.15 of the logits' deviation. They are compared in
# float64, and in float32 the stage before the first sort. (The stem that the references list has
# the positions in it, which their code adds in place.)
SORTED = {f"sgformer_{size}": ("block1_0",) for size in "sm"}


def golden(path):
    name = f"{path.parent.name}/{path.stem}"
    # Operation by operation: each is compiled once for all blocks and models, in less than half of
    # the time of whole programs. Those that run by default are compiled whole.
    full_size = (pytest.mark.goldens, pytest.mark.optimised)
    compiled = name in DEFAULT
    return pytest.param(path, compiled, id=name, marks=() if compiled else full_size)


PATHS = [golden(path) for path in MODELS]

# Tables that the goldens do not list: rotations, and indices of attention.
DERIVED = r"^rope\.freqs|\.attn\.(relative_position_index(_0)?|valid_ind_rolled)$"

# Modules whose outputs a reference lists as its stages, beside the stage maps: names of models, the
# reference's label, our path with the label's number.
MODULES = (
    (r"t2t_vit_.*", r"t2t_attention(\d)", "patch_embed/attention{}"),
    (r"t2t_vit_.*", r"stem", "patch_embed"),
    (r"t2t_vit_.*", r"blocks_(\d+)", "block_{:02}"),
    (r"mobilevitv3_.*", r"layer_1", "stem"),
    (r"uniformer_.*", r"stem", "patch_embed"),
    (r"iformer_.*", r"stem", "patch_embed/norm2"),
    (r"iformer_.*", r"blocks1_(\d+)", "stage_0_block_{:02}"),
    (r"transnext_.*", r"stem", "patch_embed"),
    (r"(sgformer|transnext)_.*", r"block1_(\d+)", "stage_0_block_{:02}"),
    (r"(local_)?vim_.*", r"layers_(\d+)", "block_{:02}/mixer"),
    (r"plainmamba_.*", r"layers_(\d+)", "block_{:02}"),
    (r"mamba2d_.*", r"layers_(9)", "merging_{}"),
    (r"mamba2d_.*", r"layers_(\d+)", "block_{:02}"),
    (r".*vmamba_.*", r"layers_(\d)_block0", "stage_{}_block_00"),
    (r"vmamba_v9_.*", r"patch_embed", "stem"),
    (r"(?!vmamba_v9_).*(mamba|vim).*", r"patch_embed", "patch_embed"),
    (r"(cswin|focal)_.*", r"stem", "patch_embed"),
    (r"(pvt_|mvit)v2_.*", r"patch_embed", "patch_embed"),
    (r"coatnet_.*", r"stem", "stem_conv2"),
    (r"moat_.*", r"stem", "stem_conv1"),
    (r"moat_.*", r"mbconv_first", "stage_0_block_00"),
    (r"moat_.*", r"moat_first", "stage_2_block_00"),
    (r"focal_.*", r"blocks_(\d)_(\d)", "stage_{}_block_{:02}"),
    (r"internimage_.*", r"stem", "stem"),
    (r"internimage_.*", r"dcn_first", "stage_0_block_00/conv"),
)


def features_and_stages(name, backbone, variables, images, labels):
    """Features, and what the reference calls its stages: label to our array, channels last."""
    features, stages = captured_stages(name, backbone, variables, images, labels)
    if hasattr(backbone, "depths"):
        for i, stage in enumerate(features.maps):
            names = (f"stages_{i}", f"layers_{i}_blocks", f"layers_{i}", f"layer_{i + 2}")
            if not name.startswith("efficient") or names[1] in labels:  # its layers_2 is merged
                stages[next(label for label in names if label in labels)] = stage
    if name.startswith("deit"):  # after single blocks, the class token first
        for depth in (1, backbone.depth // 2, backbone.depth):
            shorter = backbone.clone(depth=depth).apply(variables, images, method="features")
            patches = shorter.maps[-1].reshape(len(images), -1, backbone.dim)
            tokens = jnp.concatenate((shorter.token[:, None], patches), axis=1)
            stages[f"blocks_{depth - 1}"] = tokens
    return features, stages


def captured_stages(name, backbone, variables, images, labels):
    """Features, and the stages among `MODULES`."""
    paths = {}
    for label in labels:
        for models, pattern, path in MODULES:
            match = re.fullmatch(pattern, label)
            if label not in paths and match and re.fullmatch(models, name):
                paths[label] = path.format(*map(int, match.groups()))
    wanted = [tuple(path.split("/")) for path in paths.values()]
    features, state = backbone.apply(
        variables,
        images,
        method="features",
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.path in wanted,
    )
    found = flatten_dict(state.get("intermediates", {}), sep="/")
    stages = {label: found[f"{path}/__call__"][0] for label, path in paths.items()}
    # Of a block that gives more than a map, the map.
    first = {label: x[0] for label, x in stages.items() if isinstance(x, tuple)}
    return features, {**stages, **first}


def in_layout(stage, shape):
    """Our array in the layout of the reference, which may be a sequence or have channels first."""
    stage = np.asarray(stage)
    if len(shape) < stage.ndim:
        return stage.reshape(shape)
    return stage if list(stage.shape) == shape else np.moveaxis(stage, -1, 1)


def check_conversion(path, meta, state_dict, variables):
    """There and back, bit for bit."""
    name = model_of(path)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == meta["n_params"] == find_variant(name)[1].parameters
    naming = "official" if path.parent.name == "mambaout_official" else next(iter(namings(name)))
    back = to_torch(name, variables, naming=naming)
    counters = {key for key in back if key.endswith("num_batches_tracked")}
    assert all(back[key] == 0 for key in counters)
    derived = back.keys() - state_dict.keys() - counters
    assert all(re.search(DERIVED, key) for key in derived)
    assert state_dict.keys() <= back.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key, strict=True)
        assert not np.shares_memory(back[key], value)


@pytest.mark.parametrize(("path", "compiled"), PATHS)
def test_weights_convert_bit_for_bit_and_outputs_are_those_of_the_reference(path, compiled):
    arrays, meta, state_dict = load(path)
    name = model_of(path)
    variables = from_torch(name, state_dict)
    check_conversion(path, meta, state_dict, variables)
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    model = create_model(name)

    def forward(variables, images):
        inside = subtree(variables, "backbone")
        features, stages = features_and_stages(name, model.backbone, inside, images, meta["stages"])
        return model.head.apply(subtree(variables, "head"), features), stages

    if compiled:
        forward = jax.jit(forward)
    double = path.stem.endswith("_f64")
    with jax.enable_x64(double):
        if double:
            variables, images = jax.tree.map(np.float64, (variables, images))
        logits, stages = jax.tree.map(np.asarray, forward(variables, images))
    if path.stem in SORTED:
        stages = {label: stages[label] for label in SORTED[path.stem]}
    else:
        assert logit_error(logits, arrays["output"]) <= TOLERANCE
        assert len(stages) >= 3
    for label, stage in stages.items():
        summary = meta["stages"][label]
        stage = in_layout(stage, summary["shape"])
        assert list(stage.shape) == summary["shape"]
        assert abs(float(stage.mean()) - summary["mean"]) <= TOLERANCE * summary["std"]
        assert abs(float(stage.std()) / summary["std"] - 1) <= TOLERANCE
        first = stage.ravel()[:64]
        assert np.abs(first - arrays[f"stage_{label}"]).max() <= TOLERANCE * summary["std"]


def test_every_golden_is_of_a_model():
    assert {model_of(path) for path in MODELS} <= set(list_models())
