# SPDX-License-Identifier: Apache-2.0
"""Models of equal cost: every mixer has the MACs of the dearest SSM, however it gets there."""

import dataclasses

import pytest

from mambaout_jax.ablation.examples import Sizes
from mambaout_jax.ablation.maps import cue, sweep
from mambaout_jax.ablation.matching import arranged, build_model, can_run, macs
from mambaout_jax.ablation.model import MIXERS
from mambaout_jax.ablation.presets import PRESETS
from mambaout_jax.ablation.sequences import copying

ONE = Sizes(1, 1, 1)
FULL = PRESETS["full"]


@pytest.mark.slow
@pytest.mark.parametrize("side", [6, 16])
def test_mixers_on_a_map_cost_the_same(side):
    task = cue(sizes=ONE, side=side)
    models = {name: build_model(name, task, FULL) for name in MIXERS}
    target = macs(arranged("conv+ssm cross", task, FULL), task)
    for name, model in models.items():
        assert macs(model, task) == pytest.approx(target, rel=0.01), name
        assert model.hidden >= model.width
    assert {models[name].width for name in ("conv", "conv+ssm cross", "conv pyramid")} == {16}
    if side == 16:
        assert models["conv deep"].hidden < models["conv"].hidden


@pytest.mark.slow
def test_mixers_of_a_sequence_cost_the_same_and_none_sees_the_answer():
    task = copying(sizes=ONE, length=256)
    runs = [name for name in MIXERS if can_run(name, task)]
    assert runs == ["conv", "conv deep", "conv dilated", "conv+ssm causal", "ssm",
                    "attention causal"]  # fmt: skip
    target = macs(arranged("conv+ssm causal", task, FULL), task)
    for name in runs:
        model = build_model(name, task, FULL)
        assert macs(model, task) == pytest.approx(target, rel=0.01), name
        assert (model.width < 16) == (name in ("conv deep", "attention causal"))


def test_sceptics_convolutions_reach_the_answer_where_they_can():
    short, long = (cue(sizes=ONE, side=side) for side in (6, 16))
    row = sweep(sizes=ONE, length=64)
    sequence = copying(sizes=ONE, length=256)

    def reach(mixer, task):
        model = arranged(mixer, task, FULL)
        return model.reach, len(model.dilations)

    assert [reach("conv", task) for task in (short, long, sequence)] == [(6, 2), (6, 2), (12, 2)]
    assert [reach("conv deep", task) for task in (short, long, row, sequence)] == [
        (12, 4), (15, 5), (24, 8), (48, 8)
    ]  # fmt: skip
    assert arranged("conv dilated", short, FULL).dilations == (1, 1)
    assert arranged("conv dilated", long, FULL).dilations == (1, 4)
    assert arranged("conv dilated", row, FULL).dilations == (1, 7, 13)
    assert arranged("conv dilated", sequence, FULL).dilations == (1, 7, 35)
    assert [arranged("conv pyramid", task, FULL).levels for task in (short, long, row)] == [1, 3, 5]
    assert reach("conv pyramid", long) == (3 * (1 + 2 + 4 + 1), 4)


def test_a_mixer_that_cannot_be_cheap_enough_is_an_error_with_the_numbers():
    task = copying(sizes=ONE, length=256)
    preset = dataclasses.replace(FULL, state_size=1, heads=16)
    with pytest.raises(
        ValueError, match=r"attention causal cannot have the [\d,]+ MACs of the SSM"
    ):
        build_model("attention causal", task, preset)


def test_depth_is_what_is_asked_for_in_the_study():
    task = cue(sizes=ONE, side=16)
    model = arranged("conv", task, FULL, depth=5)
    assert (model.dilations, model.width, model.reach) == ((1,) * 5, 16, 15)
