# SPDX-License-Identifier: Apache-2.0
"""Official models: checkouts that are none, what is imported from one, and the names of weights."""

import importlib
import json
import sys

import numpy as np
import pytest
from support.places import GOLDENS

from mambaout_jax.benchmarks import official_models
from mambaout_jax.benchmarks.official_models import REPOSITORIES, check_checkout
from mambaout_jax.models import create_model


@pytest.fixture
def checkout(tmp_path):
    """A folder with the files that each repository is known by, empty."""
    for repository in REPOSITORIES.values():
        for file in repository.files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("vim", r"there is no vim/models_mamba\.py in it; .* github\.com/hustvl/Vim"),
        ("vmamba", r"there is no vmamba\.py in it; .* github\.com/MzeroMiko/VMamba"),
        (
            "plainmamba",
            "no official code of 'plainmamba' can take part; that of vmamba and vim can",
        ),
    ],
)
def test_folders_that_are_no_checkout_are_told(tmp_path, family, words):
    with pytest.raises(ValueError, match=words):
        check_checkout(family, tmp_path)


@pytest.mark.parametrize("family", REPOSITORIES)
def test_missing_packages_are_named(monkeypatch, checkout, family):
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    words = f"the official code of {family} needs a package that is not there: .*pip install torch"
    with pytest.raises(ValueError, match=words):
        check_checkout(family, checkout)


def test_checkout_that_breaks_is_told(monkeypatch, checkout):
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, official_models)  # any module
    (checkout / "vmamba.py").write_text("import torch_of_long_ago_ as torch")
    with pytest.raises(ValueError, match=r"needs a package .*'torch_of_long_ago_'"):
        check_checkout("vmamba", checkout)
    (checkout / "vmamba.py").write_text("raise NameError('no such thing')")
    with pytest.raises(
        ValueError, match="cannot be imported: NameError: no such thing; give a che"
    ):
        check_checkout("vmamba", checkout)


def test_plain_scan_is_chosen_and_nothing_stays_behind(monkeypatch, checkout):
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, official_models)
    (checkout / "vmamba.py").write_text(
        "import triton.language as tl, triton\n"
        "from fvcore.nn import flop_count\n"
        "WITH_SELECTIVESCAN_MAMBA = True\n"
        "@triton.jit\n"
        "def kernel(x: tl.tensor, n: tl.constexpr):\n"
        "    return x\n"
    )
    before, path = set(sys.modules), list(sys.path)
    module = check_checkout("vmamba", checkout)
    assert module is check_checkout("vmamba", checkout)  # timm refuses names that come twice
    assert module.kernel(3, 1) == 3
    assert module.WITH_SELECTIVESCAN_MAMBA is False
    assert set(sys.modules) == before
    assert sys.path == path


def test_modules_of_the_same_name_come_back(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rope", official_models)
    (tmp_path / "rope.py").write_text("length = 3")
    with official_models._importing([tmp_path], ["rope"], {}):
        assert importlib.import_module("rope").length == 3
    assert sys.modules["rope"] is official_models


@pytest.mark.parametrize("name", ["vmamba_v0_tiny", "vmamba_v9_tiny"])
def test_names_of_vmambas_single_file_become_those_of_its_checkpoints(name):
    with np.load(GOLDENS / "vmamba" / f"{name}.npz") as file:
        published = {key: tuple(shape) for key, shape in json.loads(str(file["meta"]))["params"]}
    single = {}
    for key, shape in published.items():
        if name == "vmamba_v0_tiny":
            key = key.replace("downsample.norm", "downsample.1")
            key = key.replace("downsample.reduction", "downsample.2")
        elif key.endswith(("x_proj_weight", "dt_projs_weight")):  # linear layers grouped by path
            key, shape = key.replace("_weight", ".weight"), (shape[0] * shape[1], shape[2])
        single[key] = np.broadcast_to(np.float32(0), shape)
    assert single.keys() != published.keys()
    renamed = official_models._published_names(name, single)
    assert {key: value.shape for key, value in renamed.items()} == published


def test_vims_names_are_those_of_its_checkpoints():
    state = {"layers.0.mixer.x_proj.weight": np.ones((44, 384))}
    assert official_models._published_names("vim_tiny", state) == state


def test_official_models_are_ours():
    for repository in REPOSITORIES.values():
        assert all(create_model(name) for name in repository.models)
