# SPDX-License-Identifier: Apache-2.0
"""A second task goes through training, evaluation and previews, which know nothing of it."""

import json

import jax
import numpy as np
import pytest
from support.ink_task import INK, Ink
from support.runs import final_state, rewind, timeless_metrics
from support.tiny_run import get_config

from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.sources import SETS
from mambaout_jax.evaluation.evaluator import evaluate
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.tasks import TASKS, find_task
from mambaout_jax.tasks.task import Objective, Task, add_up, concatenate
from mambaout_jax.train.loop import train
from mambaout_jax.train.preview import describe, show_batch
from mambaout_jax.train.writer import read_metrics


def register(patch):
    patch.setitem(TASKS, "ink", Ink)
    patch.setitem(SETS, "digits", SETS["digits"]._replace(tasks=("classification", "ink")))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register(monkeypatch)


def ink_config():
    config = get_config()
    config.task = "ink"
    config.data.image_size = 8
    config.model.options = {}
    config.schedule.warmup_steps = 1
    config.schedule.total_steps = 20
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ink") / "run"
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        return workdir, train(ink_config(), workdir)


def by_hand(params):
    """The metrics over the validation set, image by image in float64."""
    matrix, amounts = np.zeros((2, 2)), []
    kernel = np.asarray(params["backbone"]["conv"]["kernel"], np.float64)  # (3, 3, 1, 4)
    source = Digits("validation")
    for example in (source[i] for i in range(len(source))):
        size = (8, 8) if example["label"] < 5 else (12, 8)
        pixels = np.asarray(example["image"].resize(size), np.float64)
        x = np.pad(pixels / 255 - 0.5, 1)
        h, w = pixels.shape
        y = sum(x[i : i + h, j : j + w, None] * kernel[i, j, 0] for i in range(3) for j in range(3))
        y = y + np.asarray(params["backbone"]["conv"]["bias"], np.float64)
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        logits = y @ np.asarray(params["head"]["kernel"], np.float64)[0, 0] + params["head"]["bias"]
        found, truth = logits[..., 0] > 0, pixels > INK
        amounts.append(found.mean())
        for row, column in zip(truth.ravel().astype(int), found.ravel().astype(int), strict=True):
            matrix[row, column] += 1
    return {
        "pixels": matrix.sum(), "iou": matrix[1, 1] / (matrix.sum() - matrix[0, 0]),
        "images": 359, "amount": np.mean(amounts),
    }  # fmt: skip


def test_every_term_of_the_loss_is_reported(run):
    workdir, _ = run
    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert len(lines) == 3
    for line in lines:
        terms = sum(line[f"train/{name}"] for name in ("pixel", "amount", "smooth"))
        assert line["train/loss"] == pytest.approx(terms, rel=1e-5)
    assert lines[-1]["train/pixel"] < lines[0]["train/pixel"]
    assert json.loads((workdir / "pixels.json").read_text()) == {"ink": INK}


def test_partial_results_of_any_kind_count_every_image_once(run):
    workdir, metrics = run
    state = read_checkpoint(workdir / "checkpoints").state
    for prefix, params in (("eval", state["params"]), ("eval_ema", state["ema"]["params"])):
        for name, value in by_hand(params).items():
            assert metrics[f"{prefix}/{name}"] == pytest.approx(value, rel=1e-3), name
    assert evaluate(ink_config(), workdir) == metrics


def test_its_score_is_one_of_its_metrics(run):
    assert f"eval/{Ink(ink_config()).score().name}" in run[1]


def test_a_run_of_it_resumes_to_the_same_bits(run, tmp_path):
    workdir = rewind(run[0], tmp_path / "run", 11)  # amid an interval of four sums
    assert train(ink_config(), workdir) == run[1]
    assert final_state(workdir) == final_state(run[0])
    assert timeless_metrics(workdir) == timeless_metrics(run[0])


def test_its_batch_is_shown_and_its_recipe_told(tmp_path, monkeypatch):
    show_batch(ink_config(), tmp_path / "batch.txt")
    assert (tmp_path / "batch.txt").read_text().startswith("(32, 8, 8, 1) ['image', 'ink', 'pos")
    assert "mambaout_micro, ink per pixel, float32" in describe(ink_config())


def test_unknown_task_is_told_with_the_known_ones():
    words = r"'captioning' is not known; allowed are 'classification', 'detection', 'segm.*, 'ink'"
    with pytest.raises(ValueError, match=words):
        find_task("captioning")


@pytest.mark.parametrize("kind", TASKS.values())
def test_a_task_answers_all_that_it_may_be_asked(kind):
    asked = {name for name in (*vars(Objective), *vars(Task)) if not name.startswith("_")}
    assert {name for name in asked if getattr(kind, name) is getattr(Task, name)} <= {
        "groups",
        "measured_on",
        "parameter_rules",
    }


def test_partial_results_add_up_and_follow_one_another():
    trees = [{"a": np.full(2, i), "b": (np.float64(i),)} for i in (1, 2, 3)]
    total = add_up(trees)
    np.testing.assert_array_equal(total["a"], [6, 6])
    assert total["b"] == (6,)
    rows = concatenate([{"a": np.arange(i)} for i in (1, 2)])
    assert jax.tree.map(list, rows) == {"a": [0, 0, 1]}
