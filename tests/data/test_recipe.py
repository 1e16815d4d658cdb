# SPDX-License-Identifier: Apache-2.0
"""The ImageNet recipe: its schedule and decay against timm's, the same updates on every machine."""

import json
import re
import runpy

import jax
import numpy as np
import pytest
from support.places import ROOT
from support.small_steps import (
    SHAPE,
    Linear,
    assert_close,
    compile_step,
    follow,
    init,
    make_batches,
    make_mesh,
    make_step,
)

from mambaout_jax.config import resolve, validate
from mambaout_jax.data.sets.imagenet import SPLIT_SIZES
from mambaout_jax.models import create_model, parameter_rules
from mambaout_jax.train.optimizer import decay_mask, make_schedule
from mambaout_jax.weights.catalog import CATALOG
from mambaout_jax.weights.convert import model_variables, to_torch

GOLDENS = ROOT / "tests" / "goldens" / "recipe"
RECIPE = runpy.run_path(str(ROOT / "experiments" / "imagenet" / "mambaout.py"))
MODELS, MACHINES = tuple(RECIPE["DROP_PATH"]), tuple(RECIPE["MACHINES"])


def recipe(argument):
    config = RECIPE["get_config"](argument)
    config.data.path = "imagenet"
    return config


def golden(name):
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def rates(resolved, schedule, updates):
    return np.array([float(make_schedule(schedule, resolved)(update)) for update in updates])


def test_learning_rate_is_timms_in_every_epoch():
    config = recipe("mambaout_tiny")
    resolved = resolve(config, SPLIT_SIZES["train"])
    want = np.array(golden("schedule"))
    assert (resolved.steps_per_epoch, resolved.total_steps) == (312, 310 * 312)
    assert len(want) == 310
    for within in (0, 311):  # the first and the last update of an epoch
        updates = 312 * np.arange(310) + within
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                jax.vmap(make_schedule(config.schedule, resolved))(updates), want, rtol=1e-12
            )
        got = jax.jit(jax.vmap(make_schedule(config.schedule, resolved)))(updates)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=2e-6)
    np.testing.assert_array_equal(want[300:], np.float64(1e-5))


def test_schedule_per_update_cools_down_after_the_cosine():
    config = recipe("mambaout_tiny")
    config.schedule.update(total_steps=50, warmup_steps=10, cooldown_steps=5, per_epoch=False)
    config.schedule.warmup_prefix = True
    resolved = resolve(config, 3 * 4096)
    assert (resolved.total_steps, resolved.warmup_steps, resolved.cooldown_steps) == (55, 10, 5)
    got = rates(resolved, config.schedule, range(56))
    t = np.arange(56)
    rise = 1e-6 + (4e-3 - 1e-6) * t / 10
    cosine = 1e-5 + (4e-3 - 1e-5) * (1 + np.cos(np.pi * np.clip((t - 10) / 40, 0, 1))) / 2
    np.testing.assert_allclose(got, np.where(t < 10, rise, cosine), rtol=2e-6)

    config.schedule.per_epoch = True  # of three updates: the rate of the first of them holds
    held = rates(resolved, config.schedule, range(56))
    np.testing.assert_allclose(held, got[t // 3 * 3], rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model == "mambaout_femto" else pytest.mark.goldens)
        for model in MODELS
    ],
)
def test_parameters_that_decay_are_timms(model):
    config = recipe(model)
    variables = model_variables(create_model(model), config.data.image_size)
    mask = decay_mask(variables["params"], parameter_rules(config.model.name).decay)
    marked = jax.tree.map(
        lambda leaf, decays: np.broadcast_to(np.float32(decays), leaf.shape),
        variables["params"], mask,
    )  # fmt: skip
    state = to_torch(model, {"params": marked}, naming="timm")
    want = golden("decay")[model]
    assert {name for name, values in state.items() if values.all()} == set(want["decay"])
    assert {name for name, values in state.items() if not values.any()} == set(want["no_decay"])
    assert "stages.0.blocks.0.conv.weight" in want["decay"]  # a depthwise kernel


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", MODELS)
def test_every_machine_is_given_the_same_optimisation(model, machine):
    config, whole = recipe(f"{model},{machine}"), recipe(f"{model},pod")
    devices = 32 if machine == "pod" else int(machine.removesuffix("gpu"))
    validate(config, devices)
    resolved = resolve(config, SPLIT_SIZES["train"])
    assert resolved.learning_rate == 4e-3
    assert resolved.micro_batch_size / devices == 128 == config.augment.mix_group_size
    loops = [config.model.options.loop_blocks, whole.model.options.loop_blocks]
    assert loops == [machine == "pod", True]

    def without_machine(config):
        model = {**config.model.to_dict(), "dtype": "", "options": {}}
        return {**config.to_dict(), "accumulate_steps": 1, "model": model}

    assert without_machine(config) == without_machine(whole)


@pytest.mark.parametrize("argument", ["mambaout_huge", "mambaout_tiny,3gpu", "tiny", ","])
def test_unknown_models_and_machines_are_named(argument):
    with pytest.raises(ValueError, match=rf"'{argument}' is not a model.*mambaout_tiny.*1gpu, pod"):
        RECIPE["get_config"](argument)


def updates(machine, devices, batches, group_size=4):
    """The recipe with 128 instead of 4096 images in a batch, for a model without drop path."""
    config = recipe(f"mambaout_femto,{machine}")
    config.batch_size = len(batches[0]["label"])
    config.augment.mix_group_size = group_size
    config.data.update(image_size=SHAPE[0], channels=1, mean=(0.4,), std=(0.3,))
    config.optimizer.epsilon = 1e-2  # less, and Adam blows rounding up where gradients are nothing
    mesh = make_mesh(devices, 1)
    state, shardings = init(Linear(), config, mesh)
    step = compile_step(make_step(Linear(), config, mesh, shardings), state, config)
    states, sums, _ = follow(step, state, batches, mesh)
    return [state.params for state in states], sums


@pytest.fixture(scope="module")
def whole():
    batches = make_batches(2, 128)
    return batches, *updates("pod", 1, batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "devices"), [("8gpu", 8), ("4gpu", 4), ("2gpu", 2), ("1gpu", 1), ("pod", 8)]
)
def test_updates_are_the_same_on_every_machine(machine, devices, whole):
    batches, want_params, want_sums = whole
    params, sums = updates(machine, devices, batches)
    for got, want in zip(params, want_params, strict=True):
        assert_close(got, want, rtol=1e-5, atol=2e-6)
    for got, want in zip(sums, want_sums, strict=True):
        assert_close(got, want, rtol=2e-5)
    moved = np.abs(want_params[1]["dense"]["kernel"] - want_params[0]["dense"]["kernel"])
    assert moved.max() > 1e-3


@pytest.mark.slow
def test_groups_of_another_size_make_other_updates(whole):
    batches, _, want = whole
    _, got = updates("pod", 1, batches, group_size=8)
    assert abs(float(got[0]["loss"]) / float(want[0]["loss"]) - 1) > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_drop_path_is_the_models_published_rate(model):
    assert recipe(model).model.drop_path == create_model(model).backbone.drop_path


def test_docstring_names_every_model_and_machine():
    text = RECIPE["__doc__"]
    assert set(re.findall(r"^    (\w+)   ", text, re.MULTILINE)) == set(MACHINES)
    published = dict(re.findall(r"(\w+) (\d\d\.\d)[,.]", text))
    assert published.keys() == {model.removeprefix("mambaout_") for model in MODELS}
    for model, top1 in published.items():
        assert CATALOG[f"mambaout_{model}.official"].results[0].top1 == float(top1)
