# SPDX-License-Identifier: Apache-2.0
"""Estimates of scaling against numbers worked out by hand, and the state that a run really has."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny_run

from mambaout_jax.analysis.cost import Cost, count
from mambaout_jax.analysis.scaling import (
    CHIPS,
    Assumed,
    Chip,
    all_reduce_seconds,
    as_markdown,
    checkpoint_bytes,
    cost_of,
    image_seconds,
    input_cores,
    input_speeds,
    least_images,
    memory_rows,
    most_chips,
    update_seconds,
    with_tables,
)
from mambaout_jax.models import create_model
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.tasks.setup import set_up
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.state import make_initialiser

# 100 GFLOP/s, 1 GB/s of memory, 80 MB/s to 3 neighbours, 10 MB/s beyond.
CHIP = Chip(100e9, 1e9, 1e9, 80e6, 4, 10e6, 2, "")
ALL = Assumed(peak=1.0, links=1.0)


def test_passes_of_an_image_take_six_operations_per_mac():
    assert image_seconds(5_000_000_000, CHIP, ALL) == pytest.approx(0.3)
    assert image_seconds(5_000_000_000, CHIP, Assumed(0.5, 1.0)) == pytest.approx(0.6)
    # mambaout_tiny on v5e: 6 · 4.469655744 G / (0.4 · 197 T).
    assert image_seconds(4_469_655_744, CHIPS["v5e"]) == pytest.approx(0.340329e-3, rel=1e-5)


@pytest.mark.parametrize(
    ("chips", "seconds"),
    [
        (1, 0.0),
        (2, 1.0),  # 2 · 1/2 · 80 MB / 80 MB/s
        (4, 1.5),
        (8, 3.5),  # and each a quarter, 20 MB, with one other island: 2 · 1/2 · 20 MB / 10 MB/s
        (16, 4.5),  # with three: 2 · 3/4 · 2 s
    ],
)
def test_all_reduce_is_a_ring_in_an_island_and_one_between_them(chips, seconds):
    assert all_reduce_seconds(20_000_000, CHIP, chips, ALL) == pytest.approx(seconds)
    slow, short = Assumed(1.0, 0.5), Assumed(1.0, 1.0, gradient=2)
    assert all_reduce_seconds(20_000_000, CHIP, chips, slow) == pytest.approx(2 * seconds)
    assert all_reduce_seconds(20_000_000, CHIP, chips, short) == pytest.approx(seconds / 2)


@pytest.mark.parametrize("chips", [0, 6])
def test_islands_are_whole(chips):
    with pytest.raises(ValueError, match=rf"chips={chips} must be 1 to 4, or a multiple of it"):
        all_reduce_seconds(1, CHIP, chips)


def test_update_moves_28_bytes_per_parameter():
    assert update_seconds(20_000_000, CHIP) == pytest.approx(0.56)


def test_exchange_hides_behind_enough_images():
    """Passes of 0.03 s an image against 1, 1.5, 3.5 and 4.5 s among 2, 4, 8 and 16 chips."""
    cost = Cost(20_000_000, 500_000_000)
    assert [least_images(cost, CHIP, n, ALL) for n in (1, 2, 4, 8)] == pytest.approx(
        [0, 100 / 3, 50, 350 / 3]
    )
    # 4096 / 16 are 256, and 150 are needed; on 32 chips 128, and more than 150 are.
    assert most_chips(cost, CHIP, 4096, ALL) == 16
    assert most_chips(cost, CHIP, 200, ALL) == 4  # 50 on each are just enough
    assert most_chips(cost, CHIP, 196, ALL) == 2
    assert most_chips(cost, CHIP, 99, ALL) == 1  # no other number of chips divides it


def test_cores_are_images_over_the_speed_of_one():
    assert input_cores(5_000_000_000, CHIP, 0.5, ALL) == pytest.approx(1 / 0.3 / 0.5)


def test_vendors_figures():
    """Half of links in both directions, a pod's bits shared out, half of what is with sparsity."""
    assert CHIPS["v5e"][:7] == (197e12, 16e9, 819e9, 200e9, 256, 3.125e9, 14)
    assert CHIPS["v5p"][:7] == (459e12, 95e9, 2765e9, 600e9, 6144, 6.25e9, 26)
    assert CHIPS["H100"][:7] == (989.5e12, 80e9, 3350e9, 450e9, 8, 50e9, 14)


def test_costs_are_those_of_the_library():
    for mixer in ("conv", "conv+ssm"):
        model = create_model("mambaout_femto", token_mixer=mixer)
        assert cost_of("mambaout_femto", mixer) == count(model, (224, 224, 3))


def abstract_state(ema_decay, name=None):
    config = tiny_run.get_config()
    config.ema.decay = ema_decay
    if name:
        config.model.name = name
        config.model.options = ConfigDict()
        config.data.image_size = 32
    setup = set_up(config)
    rules = setup.task.parameter_rules(config.model.name)
    optimizer = make_optimizer(
        config.optimizer, make_schedule(config.schedule, setup.resolved), rules
    )
    return make_initialiser(setup, optimizer)[1]


def size_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", [None, "fasternet_t1"])  # the second has batch normalisation
def test_checkpoint_is_as_large_as_the_state_of_a_run(ema, name):
    state = abstract_state(0.9 if ema else 0.0, name)
    numbers = size_of(state.params) // 4
    statistics = size_of(state.collections) // 4
    assert bool(statistics) == (name is not None)
    assert checkpoint_bytes(numbers, ema=ema, statistics=statistics) == size_of(state)


def test_checkpoint_takes_that_on_disk(tmp_path):
    """Numbers that were trained compress by little; JSON stands beside them."""
    rng = np.random.default_rng(0)

    def trained(leaf):
        return jax.device_put(rng.normal(0, 1, leaf.shape).astype(leaf.dtype), leaf.sharding)

    state = abstract_state(0.0, "mambaout_micro")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, jax.tree.map(trained, state), {})
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    expected = checkpoint_bytes(size_of(state.params) // 4)
    assert expected > 5e6
    assert 0.85 * expected < written < 1.05 * expected


def compiled(**changes):
    """A program in a file of `mambaout compile`, without what is not read here."""
    return {
        "program": "train",
        "mixer": "conv",
        "batch_size": 4096,
        "chips": 32,
        "limit": int(15.75 * 2**30),
        "fits": True,
        "bytes": {"arguments": 3 * 2**20, "temporaries": 5 * 2**29, "peak": 3 * 2**30},
        "collectives": {"all-reduce": {"count": 2, "bytes": 5 * 2**19}},
    } | changes


def test_rows_of_memory_are_those_of_the_files(tmp_path):
    programs = [
        compiled(),
        compiled(program="evaluate"),
        compiled(fits=False),  # compiled, and larger than the memory
        compiled(
            mixer="conv+ssm",
            fits=False,
            bytes={"temporaries": 2**34, "peak": 2**34},
            collectives={},
        ),
    ]
    head = {"target": "v5e-32", "model": "mambaout_tiny", "dtype": "bfloat16", "image_size": 384}
    (tmp_path / "a.json").write_text(json.dumps({**head, "programs": programs}))
    alone = compiled(mixer="", chips=1, batch_size=128, limit=0, collectives={})
    head |= {"target": "here", "model": "deit_tiny_patch16_224", "dtype": "float32"}
    head |= {"image_size": 224}
    (tmp_path / "b.json").write_text(json.dumps({**head, "programs": [alone]}))
    v5e = ["v5e-32", "32", "4,096", "384", "bfloat16"]
    here = ["here", "1", "128", "224", "float32"]
    assert memory_rows(sorted(tmp_path.iterdir())) == [
        ["mambaout_tiny", "conv", *v5e, "3.0", "2.50", "3.00", "15.75", "2.5", "yes"],
        ["mambaout_tiny", "conv", *v5e, "3.0", "2.50", "3.00", "15.75", "2.5", "**no**"],
        ["mambaout_tiny", "conv+ssm", *v5e, "–", "16.00", "16.00", "15.75", "–", "**no**"],
        ["deit_tiny_patch16_224", "–", *here, "3.0", "2.50", "3.00", "–", "0.0", "yes"],
    ]


def test_speeds_of_the_input_are_those_with_augmentation(tmp_path):
    def row(recipe, pillow, opencv):
        medians = {"ours pillow": pillow, "ours opencv": opencv, "timm": 1.0}
        speeds = {name: {"median": median} for name, median in medians.items()}
        return {"recipe": recipe, "images_per_second_and_core": speeds}

    path = tmp_path / "input.json"
    path.write_text(
        json.dumps({"rows": [row("crop+flip", 450.0, 700.0), row("rand-augment", 300.0, 500.0)]})
    )
    assert input_speeds(path) == {"pillow": 300.0, "opencv": 500.0}


def test_tables_are_put_in_their_places():
    text = "A\n<!-- one -->\nold\n<!-- end -->\nB\n<!-- two -->\n<!-- end -->\n"
    one, two = as_markdown(["a", "b"], [["c", "1"]]), as_markdown(["x"], [])
    assert one == "| a | b |\n| --- | ---: |\n| c | 1 |\n"
    made = with_tables(text, {"one": one, "two": two})
    assert made == (
        "A\n<!-- one -->\n\n| a | b |\n| --- | ---: |\n| c | 1 |\n\n<!-- end -->\nB\n"
        "<!-- two -->\n\n| x |\n| --- |\n\n<!-- end -->\n"
    )
    assert with_tables(made, {"one": one, "two": two}) == made
    with pytest.raises(ValueError, match=r"has places for \['one', 'two'\], and there are \['one'"):
        with_tables(text, {"one": one})
