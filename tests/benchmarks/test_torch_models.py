# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the comparison of whole models, with stand-ins for PyTorch itself."""

import sys
import types

import numpy as np
import pytest

from mambaout_jax.benchmarks import torch_models
from mambaout_jax.benchmarks.torch_models import Peer, Theirs


def theirs(peer, compiled=None):
    """A side that never met PyTorch; its eager call is `int`."""
    side = object.__new__(Theirs)
    dynamo = types.SimpleNamespace(reset=lambda: None)
    side._torch = types.SimpleNamespace(_dynamo=dynamo, compile=lambda model: "compiled")
    side._device, side._peer, side._model, side.title = "cpu", peer, peer.model, peer.title
    side._inference = lambda model: {"eager": int, "compiled": compiled}[model]
    return side


def plan():
    return {"torch_compile_seconds": {}, "torch_peak_bytes": {}}


def test_failing_torch_compile_leaves_eager_timm():
    def fail():
        raise RuntimeError("no g++ here\nand a long trace")

    planned = plan()
    side = theirs(Peer("timm", "eager", compiles=True), fail)
    assert side.calls("inference", planned, compiled=True) == {"timm": int}
    assert planned == plan() | {"torch_compile_error": "no g++ here"}


def test_torch_compile_takes_part_where_it_may():
    planned = plan()
    timm = theirs(Peer("timm", "eager", compiles=True), float)
    calls = timm.calls("inference", planned, compiled=True)
    assert calls == {"timm": int, "timm compiled": float}
    assert planned["torch_compile_seconds"]["timm compiled"] >= 0
    assert timm.calls("inference", plan(), compiled=False) == {"timm": int}
    official = theirs(Peer("official", "eager"), float)
    assert official.calls("inference", plan(), compiled=True) == {"official": int}


def test_weights_come_under_the_names_that_the_conversion_reads():
    tensor = types.SimpleNamespace(cpu=lambda: types.SimpleNamespace(numpy=lambda: np.ones(2)))
    model = types.SimpleNamespace(state_dict=lambda: {"later.name": tensor})
    peer = Peer("official", model, lambda state: {"name": state["later.name"] * 3})
    assert {key: list(value) for key, value in theirs(peer).state_dict().items()} == {
        "name": [3, 3]
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mambaout_tiny", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 96}),
        ("vit_small_patch16_224", {"img_size": 96}),
    ],
)
def test_timms_models_are_made_for_the_image_size_and_without_drop_path(monkeypatch, name, options):
    made = {}
    timm = types.SimpleNamespace(create_model=lambda name, **given: made.update({name: given}))
    monkeypatch.setattr(torch_models, "import_timm", lambda: timm)
    peer = torch_models.timm_model(name, 96)
    assert made == {name: {"drop_path_rate": 0.0, **options}}
    assert (peer.title, peer.channels_last, peer.compiles) == ("timm", True, True)


def test_missing_timm_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"compares with timm, and .*; pip install torch timm, or"):
        torch_models.import_timm()
