# SPDX-License-Identifier: Apache-2.0
"""Transfer from weights made here: what is frozen stays, deep layers move less, accuracy rises."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.photo_patches import write_photo_patches
from support.places import ROOT

from mambaout_jax.config_file import override, read_config
from mambaout_jax.models import create_model
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.train.loop import train
from mambaout_jax.train.preview import describe
from mambaout_jax.train.writer import read_metrics
from mambaout_jax.weights.load import load_pretrained, save_variables

EXPERIMENTS = ROOT / "experiments"
RECIPE = str(EXPERIMENTS / "transfer" / "folder.py")
SMALL = ("--config.batch_size=16", "--config.data.num_threads=2", "--config.ema.decay=0")
LAYERS = {"stem": 0, "stage_0_block_00": 1, "downsample_1": 2, "stage_1_block_00": 2, "head": 3}


def smaller(config, settings):
    """A model of two blocks."""
    config = override(config, [*SMALL, *settings])
    with config.model.options.unlocked():
        config.model.options.depths, config.model.options.dims = (1, 1), (16, 32)
    return config


def steps(total, warmup=1):
    return (
        f"--config.schedule.total_steps={total}",
        f"--config.schedule.warmup_steps={warmup}",
        f"--config.evaluation.every_steps={total}",
        f"--config.checkpoint.every_steps={total}",
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photo_patches(folder)
    return folder


@pytest.fixture(scope="module")
def weights(photos, tmp_path_factory):
    """A weight file of a model that was trained here, at 24 pixels."""
    folder = tmp_path_factory.mktemp("weights")
    settings = (f"--config.data.path={photos}", "--config.data.image_size=24",
                "--config.optimizer.learning_rate=4e-3", *steps(30, 3))  # fmt: skip
    train(
        smaller(read_config(f"{EXPERIMENTS / 'folder.py'}:mambaout_micro"), settings),
        folder / "run",
    )
    _, variables = load_pretrained(folder / "run")
    save_variables(variables, folder / "w.safetensors", {"model": "mambaout_micro"})
    return folder / "w.safetensors"


@pytest.fixture
def untrained(tmp_path):
    """A file of the weights that `weights` were before their training."""
    model = create_model("mambaout_micro", depths=(1, 1), dims=(16, 32), num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    save_variables(variables, tmp_path / "w.safetensors", {"model": "mambaout_micro"})
    return tmp_path / "w.safetensors"


def recipe(weights, photos, *settings):
    """The recipe, at another resolution than that of the weights."""
    given = (f"--config.data.path={photos}", "--config.data.image_size=32", *settings)
    return smaller(read_config(f"{RECIPE}:{weights}"), given)


def parameters(workdir):
    return flatten_dict(read_checkpoint(workdir / "checkpoints").state["params"], sep="/")


def before(weights):
    _, variables = load_pretrained(weights, depths=(1, 1), dims=(16, 32))
    return flatten_dict(variables["params"], sep="/")


def part(path):
    return "head" if path.startswith("head/") else path.split("/")[1]


@pytest.mark.slow
def test_first_update_of_each_layer_is_the_rate_times_decay_to_its_depth(weights, photos, tmp_path):
    # Adam's first step is +-rate where the gradient is not next to nothing.
    config = recipe(
        weights, photos, *steps(1, 0), "--config.optimizer.weight_decay=0",
        "--config.optimizer.layer_decay=0.5", "--config.optimizer.learning_rate=0.01",
        "--config.model.reset_head=False", "--config.optimizer.epsilon=1e-20",
    )  # fmt: skip
    train(config, tmp_path)
    old, new = before(weights), parameters(tmp_path)
    found = set()
    for path, leaf in new.items():
        if path.endswith("kernel"):
            size = np.median(np.abs(leaf - old[path]))
            assert size == pytest.approx(0.01 * 0.5 ** (3 - LAYERS[part(path)]), rel=1e-2), path
            found.add(part(path))
    assert found == set(LAYERS)


@pytest.mark.slow
def test_frozen_parts_keep_their_bits_and_the_rest_moves(weights, photos, tmp_path):
    freeze = "--config.optimizer.freeze=('/stem/', '/stage_[01]_', '/downsample_1/norm/')"
    train(recipe(weights, photos, *steps(4), freeze, "--config.ema.decay=0.9"), tmp_path)
    old, new = before(weights), parameters(tmp_path)
    equal = {path for path, leaf in new.items() if leaf.tobytes() == old[path].tobytes()}
    assert equal == {
        path for path in new
        if part(path) in ("stem", "stage_0_block_00", "stage_1_block_00")
        or "downsample_1/norm" in path
    }  # fmt: skip
    average = flatten_dict(read_checkpoint(tmp_path / "checkpoints").state["ema"], sep="/")
    assert all(average[f"params/{path}"].tobytes() == old[path].tobytes() for path in equal)
    # Adam's two moments, of what is trained and of nothing else.
    state = read_checkpoint(tmp_path / "checkpoints").state["opt_state"]
    moments = sum(np.size(leaf) for leaf in flatten_dict(state).values() if np.ndim(leaf))
    assert moments == 2 * sum(leaf.size for path, leaf in new.items() if path not in equal)


@pytest.mark.slow
def test_a_run_with_frozen_parts_goes_on_as_if_it_had_not_stopped(weights, photos, tmp_path):
    settings = (*steps(4), "--config.optimizer.freeze=/stage_0_", "--config.checkpoint.keep=4",
                "--config.checkpoint.every_steps=2")  # fmt: skip
    whole = train(recipe(weights, photos, *settings), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    assert train(recipe(weights, photos, *settings), tmp_path / "resumed") == whole
    for path, leaf in parameters(tmp_path / "whole").items():
        np.testing.assert_array_equal(leaf, parameters(tmp_path / "resumed")[path])


@pytest.mark.slow
def test_fine_tuning_at_another_size_gets_better_than_it_begins(weights, photos, tmp_path):
    # Update 1 is at rate 0: what is measured after it is where the run begins.
    settings = (*steps(20), "--config.optimizer.learning_rate=4e-3",
                "--config.optimizer.freeze=('/stem/', '/stage_0_')",
                "--config.evaluation.every_steps=1")  # fmt: skip
    tuned = train(recipe(weights, photos, *settings), tmp_path)
    begun = read_metrics(tmp_path)[0]
    assert begun["step"] == 1
    assert tuned["eval/top1"] > begun["eval/top1"] + 10
    assert tuned["eval/loss"] < begun["eval/loss"] - 0.1


def test_wrong_pattern_is_told_before_anything_is_trained(untrained, photos, tmp_path):
    config = recipe(untrained, photos, *steps(1), "--config.optimizer.freeze=/stages/")
    with pytest.raises(ValueError, match="'/stages/' is found in no parameter"):
        describe(config)
    with pytest.raises(ValueError, match="'/stages/' is found in no parameter"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_is_folder_with_three_settings_changed():
    ours = read_config(f"{RECIPE}:mambaout_tiny.in1k")
    theirs = read_config(f"{EXPERIMENTS / 'folder.py'}:mambaout_tiny.in1k")
    for config in (ours, theirs):
        config.schedule.warmup_learning_rate = config.schedule.final_learning_rate = 0.0
    theirs.optimizer.layer_decay, theirs.optimizer.clip_norm = 0.75, 1.0
    theirs.optimizer.learning_rate = 2.5e-4
    assert ours.to_dict() == theirs.to_dict()
    assert ours.optimizer.learning_rate == pytest.approx(4e-3 * 64 / 1024)
    with pytest.raises(ValueError, match="mambaout_tiny names a model, not weights"):
        read_config(f"{RECIPE}:mambaout_tiny")


def test_layer_decay_out_of_range_is_an_error(untrained, photos, caplog):
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(ValueError, match=r"layer_decay=0\.0 is not allowed"),
    ):
        describe(recipe(untrained, photos, *steps(1), "--config.optimizer.layer_decay=0"))
