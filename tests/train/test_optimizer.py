# SPDX-License-Identifier: Apache-2.0
"""AdamW against a float64 loop, the schedule against its formula, decay, layers and freezing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from support.places import GOLDENS

from mambaout_jax.config import default_config, resolve
from mambaout_jax.models import create_model, parameter_rules
from mambaout_jax.train.optimizer import (
    decay_mask,
    frozen_mask,
    layer_depths,
    make_optimizer,
    make_schedule,
)
from mambaout_jax.weights.convert import model_variables, to_torch

LAYERS = GOLDENS / "layers"
RULES = parameter_rules("mambaout_tiny")


@pytest.fixture
def config():
    return default_config()


def resolved(config, **values):
    return dataclasses.replace(resolve(config, 4096), **values)


def test_schedule_is_linear_then_half_a_cosine(config):
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.final_learning_rate = 1e-5
    schedule = make_schedule(
        config.schedule, resolved(config, total_steps=50, warmup_steps=10, learning_rate=4e-3)
    )
    for step in range(51):
        if step < 10:
            expected = 1e-6 + (4e-3 - 1e-6) * step / 10
        else:
            expected = 1e-5 + (4e-3 - 1e-5) * 0.5 * (1 + np.cos(np.pi * (step - 10) / 40))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_schedule_without_warmup_starts_at_the_peak(config):
    schedule = make_schedule(
        config.schedule, resolved(config, total_steps=50, warmup_steps=0, learning_rate=2e-3)
    )
    assert float(schedule(0)) == pytest.approx(2e-3)
    assert float(schedule(50)) == pytest.approx(config.schedule.final_learning_rate)


def test_schedule_by_steps_falls_at_milestones(config):
    config.schedule.decay = "steps"
    config.schedule.decay_factor = 0.5
    config.schedule.warmup_learning_rate = 0.0
    values = resolved(config, total_steps=9, warmup_steps=2, milestones=(4, 7), learning_rate=8e-3)
    rates = [float(make_schedule(config.schedule, values)(step)) for step in range(9)]
    expected = [0, 4e-3, 8e-3, 8e-3, 4e-3, 4e-3, 4e-3, 2e-3, 2e-3]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_linear_schedule_ends_at_the_final_rate_and_stays_there(config):
    config.schedule.decay = "linear"
    config.schedule.final_learning_rate = 1e-3
    values = resolved(config, total_steps=8, cooldown_steps=2, warmup_steps=2, learning_rate=5e-3)
    schedule = make_schedule(config.schedule, values)
    rates = [float(schedule(step)) for step in range(2, 8)]
    np.testing.assert_allclose(rates, [5e-3, 4e-3, 3e-3, 2e-3, 1e-3, 1e-3], rtol=1e-6)


def adamw_in_numpy(params, gradients, rates, decay, clip):
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1, clip / norm)
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[name] = m, v
            update = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            params[name] = params[name] - rate * (update + decay[name] * params[name])
    return params


def test_optimizer_is_adamw_with_clipping(config, rng):
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.05
    params = {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
    gradients = [
        {name: scale * rng.standard_normal(p.shape) for name, p in params.items()}
        for scale in (0.1, 3.0, 0.5)
    ]
    rates = [0.1, 0.05, 0.2]
    expected = adamw_in_numpy(dict(params), gradients, rates, {"kernel": 0.05, "bias": 0}, 1.0)

    optimizer = make_optimizer(config.optimizer, lambda step: jnp.asarray(rates)[step], RULES)
    tree = {"layer": {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}}
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    for gradient in gradients:
        gradient = {"layer": {name: jnp.asarray(g, jnp.float32) for name, g in gradient.items()}}
        updates, state = update(gradient, state, tree)
        tree = optax.apply_updates(tree, updates)
    for name, value in expected.items():
        np.testing.assert_allclose(tree["layer"][name], value, rtol=1e-5, atol=1e-6)


def test_kernels_decay_and_nothing_else(config):
    params = model_variables(create_model("test_mambaout"), 32)["params"]
    mask = decay_mask(params, RULES.decay)
    block = mask["backbone"]["stage_0_block_00"]
    assert block == {
        "norm": {"scale": False, "bias": False},
        "fc1": {"kernel": True, "bias": False},
        "conv": {"kernel": True, "bias": False},  # the depthwise kernel too, as in the paper
        "fc2": {"kernel": True, "bias": False},
        "layer_scale": {"gamma": False},
    }


def test_class_token_and_positions_do_not_decay(config):
    # As in timm's VisionTransformer.no_weight_decay.
    name = "deit_tiny_patch16_224"
    model = create_model(name, depth=1, dim=6)
    mask = decay_mask(model_variables(model, 32)["params"], parameter_rules(name).decay)
    backbone = mask["backbone"]
    assert (backbone["cls_token"], backbone["pos_embed"]) == (False, False)
    assert backbone["patch_embed"] == {"kernel": True, "bias": False}
    assert backbone["block_00"]["attention"]["qkv"] == {"kernel": True, "bias": False}


def test_uncovered_parameter_is_an_error():
    with pytest.raises(ValueError, match=r"whether these parameters decay: \['a/table'\]"):
        decay_mask({"a": {"table": 0, "kernel": 0}}, ((r"/kernel$", True),))


def test_first_rule_decides():
    rules = ((r"head/", False), (r"kernel$", True))
    mask = decay_mask({"head": {"kernel": 0}, "body": {"kernel": 0}}, rules)
    assert mask == {"head": {"kernel": False}, "body": {"kernel": True}}


def test_layers_are_those_of_timm():
    # Each leaf full of its own layer, so that the conversion carries the layers to timm's names.
    shapes = model_variables(create_model("mambaout_femto"), 32)
    depths = layer_depths(shapes["params"], RULES.layer_of)
    leaves = jax.tree.map(lambda s, d: np.full(s.shape, d, np.float32), shapes["params"], depths)
    ours = to_torch("mambaout_femto", {"params": leaves}, naming="timm")
    assert all(np.ptp(leaf) == 0 for leaf in ours.values())
    expected = json.loads((LAYERS / "mambaout_femto.json").read_text())
    assert {name: int(leaf.flat[0]) for name, leaf in ours.items()} == expected


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("deit_tiny_patch16_224", {"depth": 12, "dim": 6}, 13),
        ("isotropic_mamba_tiny", {"depth": 11, "dim": 8}, 12),
        ("test_mambaout", {}, 7),
    ],
)
def test_layers_count_from_the_image_to_the_head(name, options, last):
    depths = layer_depths(
        model_variables(create_model(name, **options), 32)["params"], RULES.layer_of
    )
    assert set(jax.tree.leaves(depths["head"])) == {last}
    backbone = {part: set(jax.tree.leaves(tree)) for part, tree in depths["backbone"].items()}
    blocks = [part for part in backbone if "block_" in part]  # in the order of the network
    assert [backbone.pop(part) for part in sorted(blocks)] == [{i} for i in range(1, last)]
    between = {part: backbone.pop(part) for part in list(backbone) if "downsample" in part}
    assert {*map(min, backbone.values())} == {*map(max, backbone.values())} == {0}
    if name == "test_mambaout":
        assert between == {"downsample_1": {2}, "downsample_2": {3}, "downsample_3": {6}}


def test_a_part_of_unknown_place_is_an_error():
    with pytest.raises(ValueError, match=r"to which layer .* belong: \['backbone/neck/kernel'\]"):
        layer_depths({"backbone": {"stem": {"kernel": 0}, "neck": {"kernel": 0}}}, RULES.layer_of)


TREE = {
    "backbone": {
        "stem": {"conv1": {"kernel": (3, 4), "bias": (4,)}},
        "stage_0_block_00": {"fc1": {"kernel": (4, 5)}},
        "downsample_1": {"conv": {"kernel": (4, 2)}},
        "stage_1_block_00": {"fc1": {"kernel": (2, 3)}},
    },
    "head": {"classifier": {"kernel": (3, 2), "bias": (2,)}},
}
FACTORS = {"stem": 0.125, "stage_0_block_00": 0.25, "downsample_1": 0.5, "stage_1_block_00": 0.5,
           "head": 1.0}  # fmt: skip


def tree(rng):
    def leaf(shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return jax.tree.map(leaf, TREE, is_leaf=lambda node: isinstance(node, tuple))


def updates_of(optimizer, params, gradients):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    updates = {}
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return flatten_dict(updates, sep="/"), state


def test_layer_decay_multiplies_rate_and_weight_decay_of_each_layer(config, rng):
    params, gradients = tree(rng), [tree(rng), tree(rng)]
    plain, _ = updates_of(make_optimizer(config.optimizer, lambda _: 0.1, RULES), params, gradients)
    config.optimizer.layer_decay = 0.5
    decayed, _ = updates_of(
        make_optimizer(config.optimizer, lambda _: 0.1, RULES), params, gradients
    )
    for path, update in decayed.items():
        part = path.split("/")[0 if path.startswith("head") else 1]
        np.testing.assert_allclose(update, FACTORS[part] * plain[path], rtol=1e-6)


def test_first_update_of_a_layer_is_the_rate_by_its_depth(config, rng):
    config.optimizer.layer_decay, config.optimizer.weight_decay = 0.65, 0.0
    optimizer = make_optimizer(config.optimizer, lambda _: 1e-3, RULES)
    updates, _ = updates_of(optimizer, tree(rng), [tree(rng)])  # Adam's first step is +-rate
    sizes = {path.split("/")[1]: np.abs(update) for path, update in updates.items()}
    for part, depth in (("stem", 3), ("stage_0_block_00", 2), ("downsample_1", 1),
                        ("stage_1_block_00", 1), ("classifier", 0)):  # fmt: skip
        np.testing.assert_allclose(sizes[part], 1e-3 * 0.65**depth, rtol=1e-4)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_frozen_parameters_keep_their_bits_and_have_no_state(config, rng, layer_decay):
    config.optimizer.layer_decay = layer_decay
    config.optimizer.clip_norm = 0.5
    config.optimizer.freeze = ("/stem/", r"stage_0.*kernel$")
    params, gradients = tree(rng), [tree(rng), tree(rng)]
    params["backbone"]["stem"]["conv1"]["bias"] = jnp.asarray([0.0, -0.0, 1e-30, -3.0])
    optimizer = make_optimizer(config.optimizer, lambda _: 0.1, RULES)
    updates, state = updates_of(optimizer, params, gradients)
    moved = flatten_dict(optax.apply_updates(params, unflatten_dict(updates, sep="/")), sep="/")
    still = {path for path, leaf in flatten_dict(params, sep="/").items()
             if np.asarray(leaf).tobytes() == np.asarray(moved[path]).tobytes()}  # fmt: skip
    assert still == {
        "backbone/stem/conv1/kernel",
        "backbone/stem/conv1/bias",
        "backbone/stage_0_block_00/fc1/kernel",
    }
    trained = 4 * 2 + 2 * 3 + 3 * 2 + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * trained

    # The others move as if the frozen ones were constants: the norm that is clipped is theirs.
    config.optimizer.freeze = ()
    for gradient in gradients:
        gradient["backbone"]["stem"]["conv1"] = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
        gradient["backbone"]["stage_0_block_00"]["fc1"]["kernel"] = jnp.zeros((4, 5))
    alone, _ = updates_of(make_optimizer(config.optimizer, lambda _: 0.1, RULES), params, gradients)
    for path in alone.keys() - still:
        np.testing.assert_allclose(updates[path], alone[path], rtol=1e-5)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("/stem/", "/stage_7"), r"'/stage_7' is found in no parameter; .*'/backbone/stem/conv1"),
        (("/(",), r"'/\(' is not a regular expression: missing \), unterminated subpattern"),
        (("",), r"freeze=\(''\,\) leaves no parameter to train"),
    ],
)
def test_wrong_pattern_is_an_error(patterns, words):
    with pytest.raises(ValueError, match=words):
        frozen_mask(TREE, patterns)
