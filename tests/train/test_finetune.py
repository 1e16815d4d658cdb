# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: where a run starts, what it keeps of the weights, what a first-timer gets wrong."""

import logging
import shutil

import jax
import numpy as np
import pytest
from support.shared_runs import FOLDER_RECIPE, SMALL, photo_config, steps
from support.tiny_run import get_config

from mambaout_jax.cli.main import main
from mambaout_jax.config_file import read_config
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.train.loop import train
from mambaout_jax.train.preview import describe
from mambaout_jax.weights.load import load_pretrained, save_variables

STILL = ("--config.optimizer.learning_rate=0", "--config.schedule.warmup_learning_rate=0",
         "--config.schedule.final_learning_rate=0", *steps(1, 0))  # fmt: skip


@pytest.fixture
def photos(photo_run):
    return photo_run[2]


@pytest.fixture
def run(photo_run):
    """Trained from scratch, and what `train` returned."""
    return photo_run[:2]


def parameters(workdir):
    return read_checkpoint(workdir / "checkpoints").state["params"]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_run_starts_from_the_averaged_weights_of_another(photos, run, tmp_path):
    workdir, trained = run
    config = photo_config(photos, *STILL, "--config.model.reset_head=False", start=workdir)
    metrics = train(config, tmp_path)
    averaged = read_checkpoint(workdir / "checkpoints").state["ema"]
    assert_equal(parameters(tmp_path), averaged["params"])
    restored = read_checkpoint(tmp_path / "checkpoints").state
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), restored["ema"], averaged
    )
    for name in ("top1", "loss"):
        assert metrics[f"eval/{name}"] == pytest.approx(trained[f"eval_ema/{name}"], rel=1e-6)


@pytest.mark.slow
def test_a_reset_head_is_the_only_difference(photos, run, tmp_path):
    workdir, _ = run
    train(photo_config(photos, *STILL, start=workdir), tmp_path)
    averaged = read_checkpoint(workdir / "checkpoints").state["ema"]["params"]
    started = parameters(tmp_path)
    assert_equal(started["backbone"], averaged["backbone"])
    fresh, trained = started["head"].pop("classifier"), averaged["head"].pop("classifier")
    assert_equal(started["head"], averaged["head"])
    assert np.abs(fresh["kernel"] - trained["kernel"]).max() > 0.01
    assert fresh["kernel"].std() == pytest.approx(0.02, rel=0.15)
    assert not fresh["bias"].any()


@pytest.mark.slow
def test_fine_tuning_a_weight_file_beats_training_from_scratch(photos, run, tmp_path):
    workdir, _ = run
    _, variables = load_pretrained(workdir)
    file = tmp_path / "weights.safetensors"
    save_variables(variables, file, {"model": "mambaout_micro"})
    few = ("--config.optimizer.learning_rate=1e-3", *steps(6))
    scratch = train(photo_config(photos, *few), tmp_path / "scratch")
    tuned = train(photo_config(photos, *few, start=file), tmp_path / "tuned")
    assert tuned["eval/loss"] < scratch["eval/loss"] - 0.05


@pytest.mark.slow
def test_a_run_goes_on_when_its_weights_are_gone(photos, run, tmp_path):
    source, _ = run
    copy = shutil.copytree(source, tmp_path / "copy")
    config = photo_config(photos, *steps(2), start=copy)
    train(config, tmp_path / "run")
    shutil.rmtree(copy)
    config.schedule.total_steps = 3
    assert train(config, tmp_path / "run")["step"] == 3


@pytest.mark.slow
def test_fine_tuning_is_the_same_over_a_sharded_mesh(photos, run, tmp_path):
    workdir, _ = run
    settings = (*steps(2), "--config.augment.scale=(1.0, 1.0)")
    one = train(photo_config(photos, *settings, start=workdir), tmp_path / "one")
    fsdp = photo_config(photos, *settings, "--config.mesh.fsdp=4", start=workdir)
    assert train(fsdp, tmp_path / "fsdp")["eval/loss"] == pytest.approx(one["eval/loss"], rel=1e-5)


def test_recipe_takes_size_and_preparation_of_published_weights():
    config = read_config(f"{FOLDER_RECIPE}:test_mambaout")
    assert config.model.pretrained == ""
    config = read_config(f"{FOLDER_RECIPE}:mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k")
    assert config.model.name == "mambaout_base_plus_rw"
    assert (config.data.image_size, config.data.crop_fraction) == (384, 1.0)


def test_dry_run_tells_where_a_run_starts(photos, run):
    workdir, _ = run
    text = describe(photo_config(photos, *steps(2), start=workdir))
    assert f"{workdir}, last layer afresh" in text
    text = describe(
        photo_config(photos, *steps(2), "--config.model.reset_head=False", start=workdir)
    )
    assert f"{workdir}, last layer kept" in text
    assert "a fresh initialisation" in describe(photo_config(photos, *steps(2)))


@pytest.mark.slow
def test_other_normalisation_than_that_of_the_weights_is_told(photos, run, tmp_path, caplog):
    workdir, _ = run
    config = photo_config(photos, *STILL, "--config.data.mean=(0.5, 0.5, 0.5)", start=workdir)
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path)
    (message,) = (record.getMessage() for record in caplog.records if "mean" in record.getMessage())
    assert "data.mean=(0.5, 0.5, 0.5)" in message
    assert "was trained with (0.485, 0.456, 0.406)" in message


@pytest.mark.slow
def test_what_a_first_timer_gets_wrong_is_one_line(photos, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workdir, _ = run

    def attempt(start, *settings):
        arguments = [f"--config.data.path={photos}", *SMALL, *steps(2), *settings]
        assert main(["train", "--config", f"{FOLDER_RECIPE}:{start}", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().split("\n")[-1:]
        return line

    assert "there are no weights 'mambaout_femtto'" in attempt("mambaout_femtto")
    assert "did you mean" in attempt("mambaout_femto.in")
    other = attempt("mambaout_micro", f"--config.model.pretrained={workdir}x")
    assert f"there are no weights '{workdir}x'" in other
    kept = (f"--config.model.pretrained={workdir}", "--config.model.reset_head=False")
    digits = attempt("mambaout_micro", *kept, "--config.data.source=digits")
    assert f"the data have 10 classes and {workdir} has 2" in digits


@pytest.mark.parametrize(("size", "better"), [(44, "40 or 48"), (7, "8")])
def test_image_size_that_the_stride_does_not_divide_is_told(size, better, caplog):
    config = get_config()  # strides 4 and 8
    config.data.image_size = size
    with caplog.at_level(logging.WARNING):
        describe(config)
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"data.image_size={size} is not a multiple of the model's stride of 8 pixels" in message
    assert message.endswith(f"set --config.data.image_size to {better}")


def test_image_size_that_the_stride_divides_is_fine(caplog):
    config = get_config()
    config.data.image_size = 40
    with caplog.at_level(logging.WARNING):
        describe(config)
    assert not caplog.records
