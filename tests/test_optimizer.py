# SPDX-License-Identifier: Apache-2.0
"""AdamW against a float64 loop, the schedule against its formula, decay by path."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mambaout_jax.config import default_config, resolve
from mambaout_jax.models import create_model
from mambaout_jax.train.optimizer import decay_mask, make_optimizer, make_schedule
from mambaout_jax.weights.convert import model_variables


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

    optimizer = make_optimizer(config.optimizer, lambda step: jnp.asarray(rates)[step])
    tree = {"layer": {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}}
    state = optimizer.init(tree)
    for gradient in gradients:
        gradient = {"layer": {name: jnp.asarray(g, jnp.float32) for name, g in gradient.items()}}
        updates, state = optimizer.update(gradient, state, tree)
        tree = optax.apply_updates(tree, updates)
    for name, value in expected.items():
        np.testing.assert_allclose(tree["layer"][name], value, rtol=1e-5, atol=1e-6)


def test_kernels_decay_and_nothing_else(config):
    params = model_variables(create_model("test_mambaout"), 32)["params"]
    mask = decay_mask(params, config.optimizer.decay_rules)
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
    model = create_model("deit_tiny_patch16_224", depth=1, dim=6)
    mask = decay_mask(model_variables(model, 32)["params"], config.optimizer.decay_rules)
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
