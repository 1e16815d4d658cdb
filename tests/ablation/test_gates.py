# SPDX-License-Identifier: Apache-2.0
"""Contenders of equal cost: against a count by hand, every width tried, and what is refused."""

import itertools
import math
import re

import pytest
from ml_collections import ConfigDict
from support import tiny_run

from mambaout_jax.ablation import gates
from mambaout_jax.ablation.gates import Mixer, contenders, nearest_ratio, parse_mixers
from mambaout_jax.analysis.cost import Cost, count
from mambaout_jax.config_file import changed_settings
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.models import create_model
from mambaout_jax.tasks.setup import set_up

SHAPE, DIMS = (16, 16, 1), (8, 16)  # of `tiny_run`


def macs_by_hand(block):
    """Of the model of `tiny_run` with other blocks: term by term, as papers count them."""
    total = 8 * 8 * 9 * 1 * 4 + 4 * 4 * 9 * 4 * 8 + 2 * 2 * 9 * 8 * 16  # stem, between the stages
    total += 16 * 64 + 64 * 10  # head
    for C, L in zip(DIMS, (4 * 4, 2 * 2), strict=True):
        hidden, mixed = int(block.expansion_ratio * C), int(block.conv_ratio * C)
        total += 2 * hidden * C * L + hidden * C * L  # fc1, fc2
        if block.token_mixer == "attention":
            total += 4 * mixed * mixed * L + 2 * L * L * mixed
            continue
        total += 49 * mixed * L
        if block.token_mixer == "conv+ssm":
            N, R = 16, math.ceil(mixed / 16)
            paths = len(paths_of(block.routes or "cross"))
            scan = 9 * L * mixed * N + L * mixed
            total += paths * (L * mixed * (R + 2 * N) + L * R * mixed + scan)
    return total


def config_with(**options):
    config = tiny_run.get_config()
    with config.unlocked():
        config.model.options = ConfigDict({**dict(config.model.options), **options})
    return config


@pytest.fixture(scope="module")
def setup():
    return set_up(tiny_run.get_config())


@pytest.fixture
def quick(monkeypatch):
    """Counts by hand, which `test_costs_are_those_of_the_models` allows."""
    monkeypatch.setattr(
        gates, "count", lambda model, shape: Cost(1, macs_by_hand(model.backbone.block))
    )


def found(setup, text, equal="macs"):
    return contenders(setup, parse_mixers(text), equal)


def model_of(contender):
    """The model that the trainer makes of a contender's config."""
    return create_model(
        "mambaout_micro", num_classes=10, in_chans=1, **dict(contender.config.model.options)
    )


@pytest.mark.usefixtures("quick")
def test_costs_are_those_of_the_models_and_equal(setup):
    first, other = found(setup, "conv+ssm,conv")
    assert first.config.model.options.get("expansion_ratio") is None
    assert abs(other.cost.macs - first.cost.macs) <= 0.01 * first.cost.macs
    for contender in (first, other):
        model = model_of(contender)
        assert model.backbone.block.expansion_ratio == contender.expansion_ratio
        assert model.backbone.block.token_mixer == contender.mixer.token_mixer
        assert contender.cost.macs == count(model, SHAPE).macs


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "mixers", ["conv+ssm,conv,attention", "conv+ssm:snakes,conv,conv+ssm:reverse"]
)
def test_only_mixer_and_gate_differ(setup, mixers):
    first, *others = found(setup, mixers)
    for contender in (first, *others):
        changed = changed_settings(setup.config, contender.config)
        assert changed.keys() <= {
            f"model.options.{name}" for name in ("token_mixer", "routes", "expansion_ratio")
        }
        assert contender.config.is_locked
    assert "model.options.expansion_ratio" not in changed_settings(setup.config, first.config)
    assert setup.config.model.options.to_dict() == {"depths": (1, 1), "dims": (8, 16)}


@pytest.mark.usefixtures("quick")
def test_a_contender_as_configured_has_the_config(setup):
    one, two = found(setup, "conv,conv+ssm", equal="width")
    assert one.config == setup.config
    assert two.config.model.options.to_dict()["token_mixer"] == "conv+ssm"
    assert one.expansion_ratio == two.expansion_ratio == 8 / 3
    assert two.cost.macs > 2 * one.cost.macs


@pytest.mark.usefixtures("quick")
def test_routes_are_those_of_the_config_where_none_are_named():
    setup = set_up(config_with(token_mixer="conv+ssm", routes="snake"))
    mixers = "conv+ssm,conv,conv+ssm:cross"
    options = [dict(x.config.model.options) for x in found(setup, mixers, "width")]
    assert [x["routes"] for x in options] == ["snake", None, "cross"]
    assert [x["token_mixer"] for x in options] == ["conv+ssm", "conv", "conv+ssm"]
    with pytest.raises(ValueError, match=r"mixers conv\+ssm and conv\+ssm:snake are the same"):
        found(setup, "conv+ssm,conv+ssm:snake")


@pytest.mark.parametrize("dims", [(8, 16), (24, 48, 96, 128), (14, 28, 55, 73), (192,)])
@pytest.mark.parametrize("least", [1.0, 1.25, 1.1])
def test_no_other_ratio_is_nearer(rng, dims, least):
    weights = rng.integers(1, 1000, len(dims)).tolist()

    def macs(ratio):
        assert ratio >= least
        return 1234 + sum(w * int(ratio * dim) for w, dim in zip(weights, dims, strict=True))

    changes = sorted(
        {least, *(k / dim for dim in dims for k in range(math.ceil(least * dim), 9 * dim))}
    )
    every = {macs((a + b) / 2) for a, b in itertools.pairwise(changes)}
    targets = [*rng.integers(min(every) // 2, max(every), 20).tolist(), min(every), max(every)]
    for target in targets:
        nearest = min(abs(x - target) for x in every)
        assert abs(macs(nearest_ratio(macs, dims, least, target)) - target) == nearest


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mixers", ["conv,conv+ssm:raster,conv+ssm", "conv+ssm,conv,ssm"])
def test_the_dearest_is_as_configured_and_the_others_come_up_to_it(setup, mixers):
    block = create_model("mambaout_micro", token_mixer="conv+ssm").backbone.block
    target = macs_by_hand(block)
    for contender in found(setup, mixers):
        assert contender.cost.macs == pytest.approx(target, rel=0.01)
        if contender.mixer.name == "conv+ssm":
            assert (contender.cost.macs, contender.expansion_ratio) == (target, 8 / 3)
        else:
            assert contender.expansion_ratio > 8 / 3


def test_macs_that_come_no_nearer_are_refused(setup, monkeypatch):
    def coarse(model, shape):
        block = model.backbone.block
        steps = int(8 * block.expansion_ratio)
        return Cost(1, 100 * steps + 50 * (block.token_mixer == "conv"))

    monkeypatch.setattr(gates, "count", coarse)
    with pytest.raises(
        ValueError, match=r"conv\+ssm comes to 2,[12]00 MACs where conv has 2,150, and no nearer"
    ):
        found(setup, "conv,conv+ssm")


@pytest.mark.parametrize(
    ("mixers", "words"),
    [
        ("conv,mamba", "token_mixer='mamba' is not known; allowed are 'conv', 'conv+ssm'"),
        ("conv,", "token_mixer='' is not known"),
        ("conv+ssm,conv:cross", "routes='cross' is for an SSM, and token_mixer='conv' has none"),
        ("conv,conv+ssm:zigzag", "routes='zigzag' is not known; allowed are raster, reverse"),
        ("conv+ssm,conv+ssm:cross", "mixers conv+ssm and conv+ssm:cross are the same under"),
        ("conv", "mixers='conv' must be at least two different token mixers divided by commas"),
        ("conv,conv+ssm,conv", "mixers='conv,conv+ssm,conv' must be at least two different"),
    ],
)
def test_wrong_mixers_are_named(setup, mixers, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        found(setup, mixers)


def test_a_model_without_token_mixer_is_refused_with_those_that_have_one():
    config = config_with()
    config.model.name, config.model.options = "convnext_tiny", {}
    with pytest.raises(ValueError, match="has no token mixer to exchange") as error:
        found(set_up(config), "conv,conv+ssm")
    message = str(error.value)
    assert message.startswith("model.name='convnext_tiny' has no token mixer to exchange; set --")
    names = message.partition("one of ")[2].split(", ")
    assert {"mambaout_femto", "mambaout_micro_ssm", "isotropic_mamba_tiny"} <= set(names)
    assert not any(name.startswith(("convnext", "vmamba", "deit")) for name in names)


def test_trained_weights_are_refused():
    config = config_with()
    config.model.pretrained = "mambaout_femto.in1k"
    with pytest.raises(
        ValueError, match=r"'mambaout_femto\.in1k' fits one token mixer and one width"
    ):
        found(set_up(config), "conv,conv+ssm")


def test_names_of_mixers():
    mixers = parse_mixers("conv, conv+ssm:cross,attention")
    assert mixers == (Mixer("conv"), Mixer("conv+ssm", "cross"), Mixer("attention"))
    assert [mixer.name for mixer in mixers] == ["conv", "conv+ssm:cross", "attention"]
    assert [mixer.folder for mixer in mixers] == ["conv", "conv+ssm_cross", "attention"]
