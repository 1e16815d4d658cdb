# SPDX-License-Identifier: Apache-2.0
"""Presets: every task in a short and a long form that differ in one size."""

import pytest

from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.presets import PRESETS, Plan
from mambaout_jax.ablation.tasks import TOKEN_TASKS
from mambaout_jax.analysis.cost import length_ratio


@pytest.mark.parametrize("size", PRESETS)
def test_forms_of_a_task_differ_in_one_size(size):
    plans = PRESETS[size].plans
    for name, plan in plans.items():
        task, form = name.rsplit("_", 1)
        assert plan.task == task
        assert form in ("short", "long")
        short, long = plans[f"{task}_short"], plans[f"{task}_long"]
        ((key, less),), ((same, more),) = short.options.items(), long.options.items()
        assert key == same
        assert less < more
        assert short._replace(options={}) == long._replace(options={})


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_repeats_seeds_and_knows_its_mixers(size):
    preset = PRESETS[size]
    assert len(set(preset.seeds)) >= 2
    assert set(preset.mixers) <= set(MIXERS)
    assert "conv" in preset.mixers
    if size == "full":
        assert preset.mixers == tuple(MIXERS)
        assert len(preset.seeds) >= 5
        assert set(preset.learning_rates) >= {5e-4, 1e-3, 2e-3, 4e-3}
        assert {plan.task for plan in preset.plans.values()} == set(TOKEN_TASKS)


@pytest.mark.parametrize("task", ["cue", "flip_flop"])
def test_long_forms_are_long_in_the_sense_of_the_paper(task):
    preset = PRESETS["small"]
    ratios = []
    for form in ("short", "long"):
        plan: Plan = preset.plans[f"{task}_{form}"]
        ((_, size),) = plan.options.items()
        ratios.append(length_ratio(size**2 if task == "cue" else size, preset.width))
    assert ratios[0] < 1 < ratios[1]


def test_generated_examples_are_seen_once():
    preset = PRESETS["tiny"]
    task = preset.make("cue_long")
    assert len(task.train.targets) == 3 * preset.batch_size
    assert len(task.validation.targets) == len(task.test.targets) == preset.held_out
    assert len(PRESETS["full"].make("digits_short").train.targets) == 1150
