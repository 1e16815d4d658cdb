# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a run: the numbers of a plain loop over the validation set, and clear refusals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_run import get_config

from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.evaluation.evaluator import Evaluator, check_finite, evaluate
from mambaout_jax.models import create_model
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.mesh import place, replicated
from mambaout_jax.tasks.setup import set_up

NAMES = ("loss", "top1", "top5")


@pytest.fixture
def run(tiny_run):
    """A finished run, and what `train` returned."""
    return tiny_run


def loop_over_the_validation_set(variables):
    """Mean loss, top-1 and top-5 in percent, image by image in float64."""
    options = get_config().model.options.to_dict()
    model = create_model("mambaout_micro", num_classes=10, in_chans=1, **options)
    source, losses, ranks = Digits("validation"), [], []
    images = np.stack([np.asarray(source[i]["image"].resize((16, 16), 3)) for i in range(359)])
    inputs = ((images[..., None] / 255 - 0.5) / 0.5).astype(np.float32)
    all_logits = np.asarray(jax.jit(model.apply)(variables, inputs), np.float64)
    for logits, example in zip(all_logits, source, strict=True):
        label = example["label"]
        losses.append(np.log(np.sum(np.exp(logits - logits[label]))))
        ranks.append(int(np.sum(logits > logits[label])))
    ranks = np.array(ranks)
    return {
        "loss": np.mean(losses),
        "top1": 100 * np.mean(ranks == 0),
        "top5": 100 * np.mean(ranks < 5),
    }


def test_evaluate_returns_the_last_evaluation_of_the_training(run):
    workdir, metrics = run
    assert evaluate(get_config(), workdir) == metrics
    assert set(metrics) == {"step"} | {f"{p}/{n}" for p in ("eval", "eval_ema") for n in NAMES}


def test_evaluate_counts_every_example_once(run):
    # 359 examples on 8 devices in batches of 64: the last batch has 39 of them.
    workdir, metrics = run
    state = read_checkpoint(workdir / "checkpoints").state
    expected = loop_over_the_validation_set({"params": state["params"]})
    expected_ema = loop_over_the_validation_set(state["ema"])
    for name in NAMES:
        assert metrics[f"eval/{name}"] == pytest.approx(expected[name], rel=1e-5), name
        assert metrics[f"eval_ema/{name}"] == pytest.approx(expected_ema[name], rel=1e-5), name
    assert expected != expected_ema
    hits = metrics["eval/top1"] * 359 / 100
    assert hits == pytest.approx(round(hits), abs=1e-9)


def test_evaluate_in_other_batches_and_meshes_gives_the_same(run):
    config = get_config()
    config.evaluation.batch_size = 360
    config.mesh.fsdp = 4
    metrics = evaluate(config, run[0])
    for name, value in run[1].items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_evaluator_reads_the_set_once_for_all_weights(run):
    setup = set_up(get_config())
    state = read_checkpoint(run[0] / "checkpoints").state
    read = []

    class Counted(Digits):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    evaluator = Evaluator(setup.model, setup.task, setup.config, setup.mesh)
    weights = {"raw": {"params": state["params"]}, "mean": state["ema"]}
    metrics = evaluator.metrics(place(weights, replicated(setup.mesh)), Counted("validation"))
    assert {index: read.count(index) for index in range(1, 359)} == dict.fromkeys(range(1, 359), 1)
    for ours, theirs in (("raw", "eval"), ("mean", "eval_ema")):
        for name in NAMES:
            assert metrics.pop(f"{ours}/{name}") == run[1][f"{theirs}/{name}"]
    assert metrics == {}


def test_evaluator_refuses_a_batch_that_does_not_divide(run):
    setup = set_up(get_config())
    config = get_config()
    config.evaluation.batch_size = 12
    with pytest.raises(ValueError, match=r"8 devices; set --config\.evaluation\.batch_size=16"):
        Evaluator(setup.model, setup.task, config, setup.mesh)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("model", "name", "mambaout_small_rw"), ("data", "channels", 3)],
)
def test_evaluate_refuses_another_model(run, section, name, value):
    config = get_config()
    config[section][name] = value
    if name == "channels":
        config.data.mean = config.data.std = (0.5,) * 3
    words = (
        rf"the checkpoint of step 30 in {run[0]} holds another model than {config.model.name} with "
        rf"10 classes; evaluate it with its own config, {run[0]}/config\.json"
    )
    with pytest.raises(ValueError, match=words):
        evaluate(config, run[0])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["zero", *"123456789"], "classes that are gone: 'zero'; new classes: '0'; they may have"),
        (list("1032456789"), "the classes have another order"),
        (None, r"classes\.json is damaged: .*restore it from a copy"),
    ],
)
def test_evaluate_refuses_other_classes(run, tmp_path, classes, words):
    text = "" if classes is None else json.dumps(classes)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        evaluate(get_config(), tmp_path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_is_no_result(value):
    check_finite({"a": 1.0, "b": np.arange(3), "c": "word"}, "runs/x")
    with pytest.raises(FloatingPointError, match="the outputs of runs/x are not finite"):
        check_finite({"a": 1.0, "b": np.array([0, value], jnp.bfloat16)}, "runs/x")


def test_evaluate_without_a_checkpoint_says_where_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path / 'checkpoints'}"):
        evaluate(get_config(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_reads_the_newest_checkpoint(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "30")
    metrics = evaluate(get_config(), tmp_path / "run")
    assert metrics["step"] == 22
    assert metrics["eval/loss"] != run[1]["eval/loss"]
