# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they write, and that stopping and damaging them changes no result."""

import hashlib
import itertools
import json
import logging
import math
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from support.runs import (
    assert_close,
    checkpoints,
    final_state,
    flip_a_byte_of_the_data,
    rewind,
    timeless_metrics,
)
from support.tiny_run import get_config

from mambaout_jax.config_file import load_config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets.sources import UnreadableImageError, open_source
from mambaout_jax.data.views.crops import TrainingView
from mambaout_jax.evaluation.evaluator import evaluate
from mambaout_jax.runtime import mesh
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.train import loop
from mambaout_jax.train.loop import train
from mambaout_jax.train.preemption import Preempted
from mambaout_jax.train.progress import Progress
from mambaout_jax.train.writer import read_metrics


@pytest.fixture
def finished(tiny_run):
    """An uninterrupted run, and what `train` returned."""
    return tiny_run


def learning_rate(update):
    """Of update 0, 1, ...: 5 of linear warm-up from 1e-6 to 1e-2, then half a cosine to 1e-5."""
    if update < 5:
        return 1e-6 + (1e-2 - 1e-6) * update / 5
    return 1e-5 + (1e-2 - 1e-5) * (1 + math.cos(math.pi * (update - 5) / 25)) / 2


def test_train_writes_what_it_did_and_returns_the_last_evaluation(finished):
    workdir, metrics = finished
    assert load_config(workdir / "config.json").to_dict() == get_config().to_dict()
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["devices"] == ["cpu cpu"] * 8
    assert checkpoints(workdir) == [11, 22, 30]

    lines = read_metrics(workdir)
    assert [(line["step"], "eval/top1" in line) for line in lines] == [
        (8, False), (13, True), (16, False), (24, False), (26, True), (30, False), (30, True),
    ]  # fmt: skip
    assert metrics == lines[-1]
    names = {f"{prefix}/{name}" for prefix in ("eval", "eval_ema") for name in ("loss", "top1")}
    assert names < set(metrics)
    reports = [line for line in lines if "train/loss" in line]
    for line in reports:
        assert line["train/learning_rate"] == pytest.approx(learning_rate(line["step"] - 1), 1e-5)
        assert line["train/replaced_examples"] == 0
        assert line["train/images_per_second"] == pytest.approx(
            32 * 1000 / line["train/step_milliseconds"]
        )
        assert 0 <= line["train/data_wait_fraction"] <= 1
        assert 0 < line["train/gradient_norm"] < 100


def test_train_learns_to_read_digits(finished):
    workdir, metrics = finished
    losses = [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]
    assert abs(losses[0] - math.log(10)) < 0.3  # of the first updates: all classes alike
    assert losses[-1] < 0.8 * losses[0]
    assert losses == sorted(losses, reverse=True)
    assert metrics["eval/top1"] > 50  # of 10 by chance
    assert metrics["eval_ema/top1"] > 50
    assert metrics["eval/loss"] < 1.6


@pytest.mark.slow
def test_train_is_bit_identical_after_sigterm(finished, tmp_path, monkeypatch):
    class Signalled(Progress):
        def advance(self, step):
            super().advance(step)
            if step == 18:
                os.kill(os.getpid(), signal.SIGTERM)

    handler, workdir = signal.getsignal(signal.SIGTERM), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Progress", Signalled)
        with pytest.raises(
            Preempted, match=r"stopped after step 18 .* run the same command"
        ) as stop:
            train(get_config(), workdir)
    assert stop.value.code == 75
    assert stop.value.checkpoint == workdir / "checkpoints" / "18"
    assert checkpoints(workdir) == [11, 18]
    assert signal.getsignal(signal.SIGTERM) == handler

    assert train(get_config(), workdir) == finished[1]
    assert final_state(workdir) == final_state(finished[0])
    assert timeless_metrics(workdir) == timeless_metrics(finished[0])


@pytest.mark.slow
def test_train_passes_over_a_damaged_checkpoint_to_the_same_result(finished, tmp_path, caplog):
    # Killed after update 30, whose checkpoint was not complete yet; then a bit of the disk turned.
    workdir = rewind(finished[0], tmp_path / "run", 22)
    flip_a_byte_of_the_data(workdir / "checkpoints" / "22")
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        assert train(get_config(), workdir) == finished[1]
    assert "checkpoint 22 in" in caplog.text
    assert "step 11 is used instead" in caplog.text
    assert final_state(workdir) == final_state(finished[0])
    assert timeless_metrics(workdir) == timeless_metrics(finished[0])


def test_train_of_a_finished_run_only_evaluates(finished, tmp_path, monkeypatch):
    workdir = rewind(finished[0], tmp_path / "run", 30)
    before = (workdir / "metrics.jsonl").read_bytes()
    handlers = []

    class Watched(Checkpointer):
        def __exit__(self, *error):
            handlers.append(signal.getsignal(signal.SIGTERM))
            super().__exit__(*error)

    def no_update(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(loop, "make_train_step", lambda *_: no_update)
    monkeypatch.setattr(loop, "Checkpointer", Watched)
    assert train(get_config(), workdir) == finished[1]
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert checkpoints(workdir) == [11, 22, 30]
    # A signal that comes while the last checkpoint is being written does not end the process.
    assert handlers != [signal.getsignal(signal.SIGTERM)]


@pytest.mark.slow
def test_report_is_the_mean_of_its_updates(finished, tmp_path, caplog):
    config = get_config()
    config.log.every_steps = 1
    workdir = rewind(finished[0], tmp_path / "run", 11)
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        train(config, workdir)
    assert "log.every_steps was 8 up to here and is 1 from here on" in caplog.text
    assert final_state(workdir) == final_state(finished[0])

    lines = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines] == [8, *range(12, 31)]
    (expected,) = (line for line in read_metrics(finished[0]) if line["step"] == 24)
    for name in ("train/loss", "train/gradient_norm"):
        single = [line[name] for line in lines if 16 < line["step"] <= 24]
        assert np.mean(single) == pytest.approx(expected[name], rel=1e-12)
    # The first report has updates 9 to 11 from the checkpoint, and 12, which alone was not timed.
    assert "train/images_per_second" not in lines[1]
    assert "train/images_per_second" in lines[2]


@pytest.mark.slow
def test_train_goes_on_over_another_mesh(finished, tmp_path, monkeypatch, caplog):
    specs = []

    class Watched(Checkpointer):
        def save(self, step, state, meta):
            specs.append((step, state.params["head"]["hidden"]["kernel"].sharding.spec))
            super().save(step, state, meta)

    monkeypatch.setattr(loop, "Checkpointer", Watched)
    monkeypatch.setattr(mesh, "_MIN_SHARDED_SIZE", 64)  # else no parameter is large enough
    config = get_config()
    config.mesh.fsdp = 2
    workdir = rewind(finished[0], tmp_path / "run", 11)
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        metrics = train(config, workdir)
    assert "mesh.fsdp was 1 up to here and is 2 from here on" in caplog.text
    assert specs == [(step, jax.P(None, "fsdp")) for step in (22, 30)]
    for name, value in finished[1].items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    assert_close(workdir, finished[0], atol=1e-3)


def poison_updates(monkeypatch, is_bad, name="loss", value=math.nan):
    """Makes a sum not finite in updates of which `is_bad(step, digest of the batch)` says so."""
    make_train_step, poison = loop.make_train_step, jax.numpy.float32(value)

    def make_poisoned(*arguments):
        update = make_train_step(*arguments)

        def poisoned(state, batch):
            step = int(jax.device_get(state.step)) + 1
            bad = is_bad(step, digest(jax.device_get(batch["image"])))
            state, sums = update(state, batch)
            return state, {**sums, name: poison} if bad else sums

        return poisoned

    monkeypatch.setattr(loop, "make_train_step", make_poisoned)


def digest(images):
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", math.nan, "the loss is nan at step 13"),
        ("gradient_norm", math.inf, "the gradient norm is inf at step 13"),
    ],
)
def test_train_stops_before_it_saves_what_is_not_finite(
    finished, tmp_path, monkeypatch, name, value, words
):
    poison_updates(monkeypatch, lambda step, _: step == 13, name, value)
    workdir = rewind(finished[0], tmp_path / "run", 11)
    config = get_config()
    config.checkpoint.every_steps = 1
    with pytest.raises(FloatingPointError, match=words) as error:
        train(config, workdir)
    # Step 12 was still being written when step 13 came out.
    assert f"the last good checkpoint is {workdir / 'checkpoints' / '12'}." in str(error.value)
    assert not (workdir / "run.lock").exists()
    assert checkpoints(workdir) == [11, 12]
    assert max(line["step"] for line in read_metrics(workdir)) == 8


def batch_digests(count):
    config = get_config()
    source = open_source(config.data, "train")
    with train_batches(config, source, TrainingView(config)) as batches:
        return [digest(batch["image"]) for batch in itertools.islice(batches, count)]


@pytest.mark.slow
def test_a_run_rolls_back_past_bad_data_and_a_kill_changes_nothing(
    finished, tmp_path, monkeypatch, caplog
):
    config = get_config()
    config.on_nan = "roll back"
    digests = batch_digests(50)
    bad, seen = {digests[13], digests[24]}, []  # of updates 14 and, after the first roll-back, 22

    def is_bad(step, batch):
        seen.append((step, digests.index(batch)))
        return batch in bad

    poison_updates(monkeypatch, is_bad)
    workdir = rewind(finished[0], tmp_path / "run", 11)
    metrics = train(config, workdir)
    # The checks are at 13 and 16: by then updates 12 to 16 have been made, of which 14 was bad.
    assert seen[:5] == [(step, step - 1) for step in range(12, 17)]
    assert seen[5:16] == [(step, step + 2) for step in range(12, 23)]  # three batches left out
    assert seen[16:] == [(step, step + 13) for step in range(12, 31)]  # and eleven more
    assert metrics["step"] == 30
    assert [message.partition(" (")[0] for message in caplog.messages if "back" in message][1:] == [
        "the loss is nan at step 14; back to step 11, leaving out the 3 batches in between",
        "the loss is nan at step 22; back to step 11, leaving out the 11 batches in between",
    ]
    lines = timeless_metrics(workdir)
    assert [line for line in lines if "train/rollbacks" in line] == [
        {"step": 12, "train/rollbacks": 1, "train/skipped_batches": 3},
        {"step": 12, "train/rollbacks": 2, "train/skipped_batches": 11},
    ]
    assert [line["step"] for line in lines] == [8, 12, 12, 13, 16, 24, 26, 30, 30]

    for step in (11, 22):  # killed before the first checkpoint after the roll-backs, and after it
        again = rewind(workdir, tmp_path / f"from_{step}", step)
        train(config, again)
        assert final_state(again) == final_state(workdir)
        assert timeless_metrics(again) == lines


def make_folder(root, corrupt):
    """160 noise images of ten classes to train on, the first ones no images, and ten to test on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 1)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    for label in range(corrupt):
        (root / "train" / str(label) / "0.png").write_bytes(b"no image")


@pytest.mark.slow
def test_train_counts_replaced_images_and_stops_at_too_many(tmp_path):
    make_folder(tmp_path / "images", corrupt=2)
    config = get_config()
    config.data.source = "folder"
    config.data.path = str(tmp_path / "images")
    config.data.max_corrupt_fraction = 0.05
    source = open_source(config.data, "train")
    with train_batches(config, source, TrainingView(config)) as batches:
        per_step = [int(batch["replaced"].sum()) for batch in itertools.islice(batches, 30)]
    total = np.cumsum([0, *per_step])  # after each step
    assert total[30] == 12  # 30 x 32 examples are 6 epochs
    assert total[11] > 2  # so what follows the checkpoint is within the limit of 10

    train(config, tmp_path / "run")  # 12 of 960 are fewer than 5 %
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["train/replaced_examples"] for line in lines] == list(total[[8, 16, 24, 30]])

    workdir = rewind(tmp_path / "run", tmp_path / "other", 11)
    config.data.max_corrupt_fraction = 0.01  # 9.6, but at least 10 are allowed
    checks = (8, 11, 13, 16, 22, 24, 26, 30)
    step = next(step for step in checks if total[step] > 10)
    words = f"^{total[step]} of {32 * step} training examples could not be read .*=0.01; the log"
    with pytest.raises(RuntimeError, match=words):
        train(config, workdir)
    assert max(checkpoints(workdir)) < step


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("batch_size", 12, "set --config.batch_size to 8 or 16"),
        ("optimizer.freeze", ("/neck/",), "is found in no parameter"),
        ("model.name", "mambaout_mikro", "did you mean mambaout_micro"),
        ("model.conv_implementation", "cudnn", "cudnn"),
    ],
)
def test_train_leaves_no_trace_of_wrong_settings(tmp_path, setting, value, words):
    config = get_config()
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(ValueError, match=words):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_refuses_to_go_on_with_another_run(finished, tmp_path):
    workdir = rewind(finished[0], tmp_path / "run", 22)
    (workdir / "config.json").unlink()  # the checkpoint knows the settings, too
    config = get_config()
    config.seed = 1
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        train(config, workdir)
    assert not (workdir / "config.json").exists()
    assert checkpoints(workdir) == [11, 22]


def test_other_training_data_are_told_where_a_run_resumes(tmp_path):
    before = {"kind": "ImageFolder", "examples": 2, "classes": {"a": 1, "b": 1}, "fingerprint": "0"}
    loop._check_same_data(before, before, tmp_path)
    with pytest.raises(ValueError, match=r"on other training data: new classes: 'c'; it had 2 exa"):
        loop._check_same_data(
            {**before, "examples": 3, "classes": {"a": 1, "b": 1, "c": 1}}, before, tmp_path
        )
    with pytest.raises(ValueError, match="as many examples, of other names or with other"):
        loop._check_same_data({**before, "fingerprint": "1"}, before, tmp_path)


def folder_config(tmp_path):
    """Of two updates on twice forty images, in tmp_path/photos."""
    config = get_config()
    for name in ("one", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            Image.new("L", (16, 16), 5 * i).save(tmp_path / "photos" / name / f"{i}.png")
    config.data.source, config.data.path = "folder", str(tmp_path / "photos")
    config.schedule.total_steps = 2
    config.schedule.warmup_steps = 1
    return config


@pytest.mark.slow
def test_train_refuses_to_go_on_with_other_data(tmp_path, caplog):
    config = folder_config(tmp_path)
    train(config, tmp_path / "run")
    evaluate(config, tmp_path / "run")
    assert "have changed since" not in caplog.text
    (tmp_path / "photos" / "one" / "0.png").rename(tmp_path / "photos" / "two" / "more.png")
    evaluate(config, tmp_path / "run")
    assert "run have changed since: 'one' had 32 images and has 31; 'two' had 32" in caplog.text
    (tmp_path / "photos" / "two" / "more.png").rename(tmp_path / "photos" / "one" / "0.png")
    config.schedule.total_steps = 3
    (tmp_path / "photos" / "one").rename(tmp_path / "photos" / "won")
    words = "other training data: classes that are gone: 'one'; new classes: 'won'; they may have"
    with pytest.raises(ValueError, match=words):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"those of .*classes\.json: classes that are gone: 'one"):
        evaluate(config, tmp_path / "run")
    (tmp_path / "photos" / "won").rename(tmp_path / "photos" / "one")
    train(config, tmp_path / "run")


@pytest.mark.slow
def test_train_saves_before_it_stops_at_an_unreadable_validation_image(tmp_path):
    config = folder_config(tmp_path)
    bad = tmp_path / "photos" / open_source(config.data, "validation").files[0]
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    config.evaluation.every_steps = 1
    words = f"cannot read {bad}: .*it is an image of the validation set. Repair or replace it"
    with pytest.raises(UnreadableImageError, match=words):
        train(config, tmp_path / "run")
    assert checkpoints(tmp_path / "run") == [1]
    bad.write_bytes(content)
    assert train(config, tmp_path / "run")["step"] == 2
