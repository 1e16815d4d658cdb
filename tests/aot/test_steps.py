# SPDX-License-Identifier: Apache-2.0
"""Steps compiled for this machine, and the search for the largest batch against a known line."""

import jax
import pytest
from support import tiny_run

from mambaout_jax.aot import steps
from mambaout_jax.aot.steps import compile_step, largest_batch


@pytest.mark.slow
def test_the_steps_of_a_run_are_compiled_and_read():
    config = tiny_run.get_config()
    train = compile_step(config, "here", jax.devices())
    assert train["fits"]
    assert train["batch_size"] == config.batch_size
    assert train["bytes"]["arguments"] > 3 * 4 * 1000  # parameters and both of Adam's averages
    assert train["collectives"].keys() >= {"all-reduce"}  # of gradients
    assert train["largest"][0]["size"] == max(x["size"] for x in train["largest"])
    assert max(train["memory"]) >= train["largest"][0]["size"]
    evaluate = compile_step(config, "here", jax.devices(), "evaluate")
    assert evaluate["batch_size"] == config.evaluation.batch_size
    assert evaluate["bytes"]["arguments"] < train["bytes"]["arguments"]


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (32.75G) exceeds available HBM (15.75G).",
            int(32.75 * 2**30),
        ),
        ("XLA:TPU compile permanent error. Used 900.50M of 15.75G hbm.", int(900.5 * 2**20)),
        ("Mosaic failed to compile", None),
    ],
)
def test_what_does_not_fit_tells_its_need(message, needed):
    found = steps._needed(message)
    assert found == (needed and {"temporaries": needed, "peak": needed})


@pytest.mark.parametrize(
    ("fixed", "per_image", "wanted"),
    [(2.0, 0.01, 1368), (0.1, 0.001, 15648), (15.0, 0.5, 0), (0.0, 1.0, 8)],
)
def test_the_largest_batch_is_where_memory_ends(monkeypatch, fixed, per_image, wanted):
    """Memory on a known line, GiB; v5e chips have 15.75."""
    tried = []

    def compiled(config, target, devices):
        peak = int((fixed + per_image * config.batch_size) * 2**30)
        tried.append(config.batch_size)
        return {"fits": peak <= 15.75 * 2**30, "bytes": {"peak": peak}}

    monkeypatch.setattr(steps, "compile_step", compiled)
    config = tiny_run.get_config()
    config.batch_size = 4096
    config.accumulate_steps = 1
    found = largest_batch(config, "v5e-8", [None] * 8, log=lambda line: None)
    assert len(tried) <= 6
    assert all(size % 8 == 0 for size in tried)
    assert wanted * 0.97 <= found["batch_size"] <= wanted
    assert [size for size, _, _ in found["tried"]] == sorted(tried)


def test_a_machine_without_a_known_memory_has_no_largest_batch():
    with pytest.raises(ValueError, match=r"target='here' has no limit that is known"):
        largest_batch(tiny_run.get_config(), "here", jax.devices())
