# SPDX-License-Identifier: Apache-2.0
"""The comparison with timm: our side on a golden's weights, the arithmetic, and timm missing."""

import sys
import types

import jax
import numpy as np
import pytest
from goldens.fill import input_of
from support.goldens import load
from support.places import GOLDENS

from mambaout_jax.benchmarks import throughput

NAME = "test_mambaout"


@pytest.fixture(scope="module")
def theirs():
    """What `_Timm` gives, from the golden."""
    arrays, meta, state_dict = load(GOLDENS / "mambaout" / f"{NAME}.npz")
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    return types.SimpleNamespace(
        images=np.ascontiguousarray(images),
        labels=np.arange(len(images)),
        logits=arrays["output"],
        state_dict=lambda: state_dict,
    )


@pytest.fixture(scope="module")
def ours(theirs):
    return throughput._Ours(NAME, theirs, "float32")


def test_inference_computes_the_logits_of_timm(ours, theirs):
    plan = {}
    logits = ours.call("inference", plan)()
    assert np.abs(logits - theirs.logits).max() <= 1e-4 * theirs.logits.std()
    assert plan["compile_seconds"] > 0
    assert plan["temp_bytes"] > 0


@pytest.mark.slow
def test_training_step_is_adamw(ours, theirs):
    # Adam's first update is the sign of the gradient, whatever its size.
    before = jax.device_get(ours._variables)
    (after, _) = ours.call("training", {})()
    kernel, moved = (
        tree["params"]["head"]["classifier"]["kernel"] for tree in (before, jax.device_get(after))
    )
    steps = moved - kernel * (1 - throughput._LEARNING_RATE * throughput._WEIGHT_DECAY)
    assert np.median(np.abs(steps)) == pytest.approx(throughput._LEARNING_RATE, rel=0.01)
    again = jax.device_get(ours._variables)
    jax.tree.map(np.testing.assert_array_equal, again, before)  # the next race starts from these


def test_another_model_is_refused(theirs):
    wrong = types.SimpleNamespace(**{**vars(theirs), "logits": theirs.logits[:, ::-1]})
    with pytest.raises(ValueError, match="the logits of test_mambaout differ from timm's by"):
        throughput._Ours(NAME, wrong, "float32")


def test_row_has_speeds_and_ratios_round_by_round():
    times = {"ours": [100.0, 200.0, 100.0], "timm": [150.0, 200.0, 400.0]}
    row = throughput._row(times, batch_size=8)
    assert row["images_per_second"]["ours"] == {"median": 80.0, "min": 40.0, "max": 80.0}
    assert row["speedup"] == {"timm": {"median": 1.5, "min": 1.0, "max": 4.0}}
    alone = throughput._row({"timm": [100.0]}, batch_size=8)
    assert alone["speedup"] == {}


def print_row(capsys, times, **plan):
    """The words of every line that the table has of a row."""
    where = {"device": "cpu", "platform": "cpu", "jax": "1", "torch": "2", "timm": "3"}
    row = {"model": "mambaout_femto", "pass": "training"} | throughput._row(times, 8)
    row |= dict.fromkeys(throughput._PLAN) | plan
    throughput.print_table(
        {"environment": where, "dtype": "float32", "batch_size": 8, "image_size": 224,
         "rows": [row]}
    )  # fmt: skip
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]]


def test_table_prints_medians_and_ranges(capsys):
    times = {"ours": [100.0, 200.0, 100.0], "timm": [150.0, 200.0, 400.0]}
    words = "mambaout_femto training ours 80.0 timm 40.0 ours / timm: 1.50x (1.00-4.00)"
    assert print_row(capsys, times) == [words]


def test_table_prints_compilation_and_memory(capsys):
    plan = {"compile_seconds": 9.71, "temp_bytes": 3 * 2**30, "torch_compile_seconds": 4.0}
    lines = print_row(capsys, {"ours": [100.0]}, **plan, torch_peak_bytes=2**20)
    assert lines[1:] == [
        "compilation: ours 9.7 s; timm 4.0 s",
        "memory: ours, temporary 3,072.0 MiB; timm, in all 1.0 MiB",
    ]


def test_table_says_where_torch_compile_failed(capsys):
    lines = print_row(capsys, {"timm": [100.0]}, torch_compile_error="no g++")
    assert lines == ["mambaout_femto training timm 80.0", "torch.compile failed: no g++"]


def test_failing_torch_compile_leaves_eager_timm():
    def fail():
        raise RuntimeError("no g++ here\nand a long trace")

    side = object.__new__(throughput._Timm)
    dynamo = types.SimpleNamespace(reset=lambda: None)
    side._torch = types.SimpleNamespace(_dynamo=dynamo, compile=lambda model: "compiled")
    side._device, side._compiled, side._model = "cpu", True, "eager"
    side._inference = lambda model: {"eager": int, "compiled": fail}[model]
    plan = {}
    assert side.calls("inference", plan) == {"timm": int}
    assert plan == {"torch_compile_error": "no g++ here"}


def test_missing_timm_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"compares with timm, and .*; pip install torch timm"):
        throughput.run(models=[NAME])
