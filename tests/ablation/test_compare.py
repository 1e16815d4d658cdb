# SPDX-License-Identifier: Apache-2.0
"""Runs of a comparison: their order and folders, what goes on, and what is refused.

Training is played here; `tests/cli/test_compare_verb.py` has real runs.
"""

import json
import math
import shutil
from typing import NamedTuple

import pytest
from support import tiny_run

from mambaout_jax.ablation import compare as module
from mambaout_jax.ablation.compare import Comparison, compare
from mambaout_jax.ablation.gates import Contender, Mixer
from mambaout_jax.analysis.cost import Cost
from mambaout_jax.runtime.lock import DirectoryLock
from mambaout_jax.tasks.setup import set_up
from mambaout_jax.train.preemption import Preempted
from mambaout_jax.train.writer import read_metrics

STEPS = 30  # of `tiny_run`


@pytest.fixture(scope="module")
def setup():
    return set_up(tiny_run.get_config())


def contender(setup, name):
    config = setup.config.copy_and_resolve_references()
    if name != "conv":
        with config.unlocked():
            config.model.options.token_mixer = name
    return Contender(Mixer(name), config, 8 / 3, Cost(1000, 2000))


@pytest.fixture
def comparison(setup):
    models = [contender(setup, name) for name in ("conv", "conv+ssm")]
    return Comparison("tiny_run.py", setup, models, "width")


class Trainer(NamedTuple):
    """Plays `train`: writes what a run leaves behind, and calls `before` with the run's name."""

    calls: list
    before: dict

    def __call__(self, config, workdir):
        name = str(workdir.relative_to(workdir.parents[1]))
        self.calls.append(name)
        self.before.get(name, lambda: None)()
        top1 = 90.0 + config.seed + (config.seed + 1) * ("ssm" in name)
        metrics = {"eval/top1": 0.0, "eval_ema/top1": top1, "eval_ema/loss": 0.5}
        (workdir / "checkpoints" / str(STEPS)).mkdir(parents=True)
        lines = [
            {"step": 8, "train/images_per_second": 100.0, "train/step_milliseconds": 320.0},
            {"step": 16, "train/images_per_second": 400.0, "train/step_milliseconds": 80.0},
            {"step": 13, **metrics, "eval_ema/top1": 12.0},
            {"step": STEPS, "train/images_per_second": 200.0, "train/step_milliseconds": 160.0},
            {"step": STEPS, **metrics},
        ]
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
        return {"step": STEPS, **metrics}


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer([], {})
    monkeypatch.setattr(module, "train", trainer)
    return trainer


FOUR = ["conv/seed_0", "conv+ssm/seed_0", "conv/seed_1", "conv+ssm/seed_1"]


def test_seed_by_seed_all_mixers_are_trained_and_read_again(comparison, trainer, tmp_path, capsys):
    result = compare(comparison, 2, tmp_path)
    assert trainer.calls == FOUR
    conv, ssm = result["mixers"]
    assert [run["workdir"] for run in ssm["runs"]] == FOUR[1::2]
    assert [run["metrics"]["eval_ema/top1"] for run in ssm["runs"]] == [91.0, 93.0]
    assert (conv["mean"], conv["error"]) == (90.5, 0.5)
    assert (conv["parameters"], conv["macs"], conv["images_per_second"]) == (1000, 2000, 200.0)
    assert conv["seconds_per_update"] == pytest.approx(0.16)
    assert result["metric"] == "eval_ema/top1"  # the config keeps an average
    assert (result["config"], result["seeds"], result["updates"]) == ("tiny_run.py", [0, 1], STEPS)
    (row,) = result["comparisons"]
    assert (row["mixer"], row["minus"], row["difference"]) == ("conv+ssm", "conv", 1.5)
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(result))
    assert row["verdict"] in (tmp_path / "compare.md").read_text()
    assert "conv+ssm, seed 1: run 4 of 4\n" in capsys.readouterr().out

    assert compare(comparison, 2, tmp_path) == result
    assert trainer.calls == FOUR
    assert "conv+ssm, seed 1: run 4 of 4, has been trained\n" in capsys.readouterr().out
    assert compare(comparison, 3, tmp_path)["seeds"] == [0, 1, 2]
    assert trainer.calls[4:] == ["conv/seed_2", "conv+ssm/seed_2"]
    assert not (tmp_path / "run.lock").exists()


def test_a_stopped_comparison_has_the_seeds_that_are_complete_and_goes_on(
    comparison, trainer, tmp_path
):
    def stop():
        raise Preempted(7, tmp_path)

    trainer.before["conv+ssm/seed_1"] = stop
    with pytest.raises(Preempted):
        compare(comparison, 2, tmp_path)
    assert json.loads((tmp_path / "compare.json").read_text())["seeds"] == [0]
    assert "take more --seeds" in (tmp_path / "compare.md").read_text()
    assert not (tmp_path / "run.lock").exists()
    trainer.before.clear()
    result = compare(comparison, 2, tmp_path)
    assert trainer.calls == [*FOUR, FOUR[-1]]
    assert result["seeds"] == [0, 1]


@pytest.mark.parametrize("loss", ["checkpoint", "metrics", "line", "damage"])
def test_a_run_without_its_end_is_handed_to_the_trainer(comparison, trainer, tmp_path, loss):
    result = compare(comparison, 1, tmp_path)
    run = tmp_path / "conv" / "seed_0"
    metrics = run / "metrics.jsonl"
    if loss == "metrics":
        metrics.unlink()
    elif loss == "line":
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    elif loss == "damage":
        metrics.write_text("nonsense\n" + metrics.read_text())
    if loss == "checkpoint":
        shutil.rmtree(run / "checkpoints")
        (run / "config.json").write_text(json.dumps(comparison.setup.config.to_dict()))
    else:
        trainer.before["conv/seed_0"] = lambda: shutil.rmtree(run / "checkpoints")
    assert compare(comparison, 1, tmp_path) == result
    assert trainer.calls == ["conv/seed_0", "conv+ssm/seed_0", "conv/seed_0"]


@pytest.fixture
def with_a_run(tiny_run, tmp_path):
    """A folder where one run has been trained, by the ordinary trainer."""
    shutil.copytree(tiny_run[0], tmp_path / "conv" / "seed_0")
    return tmp_path


def test_a_run_of_the_trainer_is_one_of_the_comparison(comparison, trainer, with_a_run, tiny_run):
    result = compare(comparison, 1, with_a_run)
    assert trainer.calls == ["conv+ssm/seed_0"]
    metrics = {name: value for name, value in tiny_run[1].items() if name != "step"}
    assert result["mixers"][0]["runs"][0]["metrics"] == metrics
    speeds = [x["train/images_per_second"] for x in read_metrics(tiny_run[0])
              if "train/images_per_second" in x]  # fmt: skip
    assert min(speeds) <= result["mixers"][0]["images_per_second"] <= max(speeds)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("batch_size", 64, "batch_size is 32 there and 64 now"),
        ("schedule.total_steps", 60, "schedule.total_steps is 30 there and 60 now"),
        ("model.options.expansion_ratio", 4.0, "model.options.expansion_ratio is None there and 4"),
    ],
)
def test_a_run_with_other_settings_is_refused(setup, trainer, with_a_run, setting, value, words):
    config = setup.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({setting: value})
    other = contender(setup, "conv+ssm"), contender(setup, "conv")._replace(config=config)
    with pytest.raises(ValueError, match="holds another comparison") as error:
        compare(Comparison("tiny_run.py", setup, other, "width"), 1, with_a_run)
    assert str(error.value).startswith(f"{with_a_run / 'conv' / 'seed_0'} holds another comparison")
    assert words in str(error.value)
    assert str(error.value).endswith(
        "Compare into another --out, or set these back to go on with that one"
    )
    assert trainer.calls == []


def test_what_decides_no_result_may_change(comparison, trainer, with_a_run, setup):
    config = setup.config.copy_and_resolve_references()
    config.log.every_steps, config.checkpoint.keep, config.data.num_threads = 5, 1, 3
    first = contender(setup, "conv")._replace(config=config)
    models = [first, contender(setup, "conv+ssm")]
    compare(comparison._replace(contenders=models), 1, with_a_run)
    assert trainer.calls == ["conv+ssm/seed_0"]


def test_another_config_in_the_same_folder_is_refused(comparison, trainer, tmp_path, setup):
    compare(comparison, 1, tmp_path)
    config = setup.config.copy_and_resolve_references()
    config.optimizer.learning_rate = 0.5
    models = [contender(setup, "attention"), contender(setup, "conv+ssm")]
    other = Comparison("other.py", set_up(config), models, "width")
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is 0\.01 there and 0\.5 now"):
        compare(other, 1, tmp_path)
    assert len(trainer.calls) == 2


def test_other_training_data_are_refused(comparison, trainer, with_a_run, monkeypatch):
    data = {"kind": "Digits", "examples": 1437}
    monkeypatch.setattr(module, "identity", lambda source: data)
    with pytest.raises(
        ValueError, match=r"other training data: .*it had 1,438 examples and has 1,4"
    ):
        compare(comparison, 1, with_a_run)
    assert trainer.calls == []


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("compare.json", "{}", "holds a compare.json or compare.md that is of no comparison"),
        ("compare.json", "[", "is of no comparison; nothing is replaced: compare into another --"),
        ("compare.md", "# Mine", "is of no comparison"),
        ("conv/seed_1/metrics.jsonl", "mine", "holds metrics.jsonl, but no training run"),
    ],
)
def test_files_of_another_origin_are_refused(comparison, trainer, tmp_path, file, text, words):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(FileExistsError, match=words):
        compare(comparison, 2, tmp_path)
    assert trainer.calls == []
    assert path.read_text() == text


def test_a_second_start_is_refused(comparison, trainer, tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(RuntimeError, match="is in use by process"):
        compare(comparison, 1, tmp_path)
    lock.release()
    assert trainer.calls == []


def test_a_run_that_diverged_ends_the_comparison(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", lambda config, workdir: {"eval_ema/top1": math.nan})
    with pytest.raises(FloatingPointError, match=r"eval_ema/top1 of .*conv/seed_0 is nan: the run"):
        compare(comparison, 1, tmp_path)


def test_seeds_count_from_that_of_the_config(comparison, trainer, tmp_path, setup):
    config = setup.config.copy_and_resolve_references()
    config.seed = 2**32 - 2
    other = comparison._replace(setup=set_up(config))
    with pytest.raises(ValueError, match="seed=4294967296 is not allowed; it must be a whole num"):
        compare(other, 3, tmp_path)
    compare(other, 2, tmp_path)
    assert trainer.calls[2:] == ["conv/seed_4294967295", "conv+ssm/seed_4294967295"]
