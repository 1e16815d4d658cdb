# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the comparison of whole models, and what is refused before it."""

import sys
import types

import pytest

from mambaout_jax.benchmarks import lineup
from mambaout_jax.benchmarks.lineup import line_up

TIMMS = ["mambaout_tiny", "convnext_tiny", "vit_small_patch16_224"]


def enter(*models, scans=(), timm=True, official=()):
    return line_up(models, 32, scans=scans, timm=timm, official=official)


@pytest.fixture
def timm(monkeypatch):
    module = types.SimpleNamespace(is_model=TIMMS.__contains__, list_models=lambda: TIMMS)
    monkeypatch.setattr(lineup, "import_timm", lambda: module)


@pytest.fixture
def no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)


def test_models_that_timm_cannot_have_need_no_timm(no_timm):
    names = ["vim_tiny", "vmamba_v9_tiny", "efficientvmamba_tiny", "isotropic_mamba_tiny"]
    entries = enter(*names)
    assert [entry.name for entry in entries] == names
    assert all(entry.ours and entry.peer is None for entry in entries)


def test_timm_is_asked_for_where_it_may_have_the_model(no_timm):
    with pytest.raises(ValueError, match=r"compares with timm, and .*; pip install torch timm, or"):
        enter("vim_tiny", "mambaout_tiny")
    (entry,) = enter("mambaout_tiny", timm=False)
    assert entry.peer is None


def test_timm_takes_part_where_it_has_the_model(timm):
    ours = {"mambaout_tiny": True, "mambaout_micro": False, "convnext_tiny": True,
            "vim_tiny": False}  # fmt: skip
    entries = enter(*ours, "vit_small_patch16_224")
    assert [entry.peer is not None for entry in entries] == [*ours.values(), True]
    assert [entry.ours for entry in entries] == [True] * 4 + [False]


def test_patterns_stand_for_our_names_and_no_name_comes_twice():
    entries = enter("vim_small", "vim_*", "plainmamba_l[13]", timm=False)
    names = ["vim_small", "vim_tiny", "plainmamba_l1", "plainmamba_l3"]
    assert [entry.name for entry in entries] == names
    with pytest.raises(ValueError, match=r"no model matches 'wim_\*'; `mambaout models` lists"):
        enter("wim_*")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mambaout_tini",
            "no model is called 'mambaout_tini' here or in timm; did you mean mambaout_tiny",
        ),
        ("vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("qqq", "`mambaout models` lists ours"),
    ],
)
def test_unknown_names_come_with_close_ones(timm, name, words):
    with pytest.raises(ValueError, match=words):
        enter("mambaout_tiny", name)


def test_close_names_of_ours_are_told_where_timm_is_missing(no_timm):
    words = r"no model is called 'vim_tini' here; did you mean vim_tiny.* pip install torch timm"
    with pytest.raises(ValueError, match=words):
        enter("vim_tini")


def test_names_of_timm_alone_are_unknown_without_timm(no_timm):
    with pytest.raises(ValueError, match="no model is called 'vit_small_patch16_224'"):
        enter("vit_small_patch16_224", timm=False)


def test_scans_take_part_where_there_is_a_scan(monkeypatch):
    monkeypatch.setattr(lineup, "has_scan", lambda name, image_size: name.endswith("_ssm"))
    names = ("mambaout_micro", "mambaout_micro_ssm")
    entries = enter(*names, scans=["associative"], timm=False)
    assert [entry.scans for entry in entries] == [(), ("associative",)]
    with pytest.raises(ValueError, match=r"scans=\['sequential'\]: none of the models has a scan"):
        enter("mambaout_micro", scans=["sequential"], timm=False)
    with pytest.raises(ValueError, match=r"scans=\['parallel'\] are not known; allowed are auto, "):
        enter("mambaout_micro_ssm", scans=["parallel"], timm=False)


def test_official_code_takes_part_for_its_family(monkeypatch):
    monkeypatch.setattr(lineup, "check_checkout", lambda family, folder: None)
    official = [("vim", "Vim")]
    peers = [entry.peer for entry in enter("vim_tiny", "plainmamba_l1", official=official)]
    assert peers[0].args == ("Vim", "vim_tiny", 32)
    assert peers[1] is None
    with pytest.raises(ValueError, match="official=vim=Vim: none of its models is measured; name"):
        enter("plainmamba_l1", official=official)
    with pytest.raises(ValueError, match="official: vim is given twice"):
        enter("vim_tiny", official=official * 2)
