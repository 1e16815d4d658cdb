# SPDX-License-Identifier: Apache-2.0
"""What a workdir says about its run, and when it is another run."""

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mambaout_jax import __version__
from mambaout_jax.config import default_config
from mambaout_jax.config_file import load_config
from mambaout_jax.train import record
from mambaout_jax.train.record import (
    check_nothing_foreign,
    check_same_run,
    git_revision,
    record_run,
)


@pytest.fixture
def config():
    config = default_config()
    config.data.source = "digits"
    return config


def git(folder, *arguments):
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def source_tree(tmp_path, monkeypatch):
    """A repository, tagged, with the package in it."""
    tree = tmp_path / "tree"
    path = tree / "mambaout_jax" / "train" / "record.py"
    path.parent.mkdir(parents=True)
    path.write_text("x = 1\n")
    git(tmp_path, "init", "--quiet", str(tree))
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "one")
    git(tree, "tag", "-a", "v1", "-m", "a tag is no commit")
    monkeypatch.setattr(record, "__file__", str(path))
    return tree


def test_git_revision_is_the_commit(source_tree):
    commit = git(source_tree, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert git_revision() == commit
    Path(record.__file__).write_text("x = 2\n")
    assert git_revision() == f"{commit}-dirty"


def test_git_revision_is_none_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert git_revision() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # nor is there any git
    assert git_revision() is None


def test_git_revision_is_not_that_of_a_project_which_has_the_package_installed(
    source_tree, monkeypatch
):
    installed = source_tree / ".venv" / "lib" / "mambaout_jax" / "train" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("x = 1\n")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert git_revision() is None


def test_record_run_writes_settings_and_environment(config, tmp_path):
    config.batch_size = 24
    record_run(config, tmp_path / "a" / "run", {"classes.json": ["cat", "dog"]})
    assert load_config(tmp_path / "a" / "run" / "config.json").to_dict() == config.to_dict()
    assert json.loads((tmp_path / "a" / "run" / "classes.json").read_text()) == ["cat", "dog"]
    environment = json.loads((tmp_path / "a" / "run" / "environment.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", environment.pop("started"))
    platform = environment.pop("platform")
    assert platform.startswith(sys.platform.capitalize())
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    assert environment == {
        "command": sys.argv,
        "git_revision": git_revision(),
        "versions": {
            "mambaout-jax": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: importlib.metadata.version(name) for name in names},
        },
        "processes": 1,
        "devices": ["cpu cpu"] * jax.device_count(),
    }


@pytest.fixture
def saved(config, monkeypatch):
    """As if the workdir held a checkpoint of a run with these settings, as JSON gives them back."""

    def save():
        settings = json.loads(json.dumps(config.to_dict()))
        monkeypatch.setattr(record, "read_meta", lambda directory: {"settings": settings})

    save()
    return save


def test_a_workdir_without_a_checkpoint_is_free_for_any_run(config, tmp_path, caplog):
    check_same_run(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    record_run(config, tmp_path, {})
    config.seed = 1
    check_same_run(config, tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"seed": 5}'])
def test_the_checkpoint_says_what_the_settings_were_whatever_the_file_says(
    config, saved, tmp_path, content, caplog
):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    check_same_run(config, tmp_path)
    config.seed = 1
    with pytest.raises(ValueError, match="  seed: 0 there, 1 now"):
        check_same_run(config, tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", '["mine"]'),
        ("environment.json", "{}"),
        ("metrics.jsonl", '{"step": 1}'),
        ("config.json", '{"compilerOptions": {}}'),
        ("config.json", "no json"),
    ],
)
def test_files_of_another_origin_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match=f"holds {name}, but no training run; nothing is rep"):
        check_nothing_foreign(tmp_path, {"classes.json": ["cat"]})
    assert (tmp_path / name).read_text() == text


def test_files_of_a_run_are_its_own(config, tmp_path):
    check_nothing_foreign(tmp_path / "none", {"classes.json": ["cat"]})
    check_nothing_foreign(tmp_path, {"classes.json": ["cat"]})
    (tmp_path / "notes.txt").write_text("mine")
    record_run(config, tmp_path, {"classes.json": ["cat"]})
    check_nothing_foreign(tmp_path, {"classes.json": ["cat"]})
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    check_nothing_foreign(tmp_path, {"classes.json": ["cat"]})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", 1, "  seed: 0 there, 1 now"),
        ("batch_size", 512, "  batch_size: 1024 there, 512 now"),
        ("accumulate_steps", 2, "  accumulate_steps: 1 there, 2 now"),
        (
            "model.name",
            "mambaout_femto",
            "  model.name: 'mambaout_tiny' there, 'mambaout_femto' now",
        ),
        ("model.drop_path", 0.1, "  model.drop_path: None there, 0.1 now"),
        ("data.source", "folder", "  data.source: 'digits' there, 'folder' now"),
        ("data.image_size", 32, "  data.image_size: 224 there, 32 now"),
        ("augment.scale", (0.3, 1.0), "  augment.scale: (0.08, 1.0) there, (0.3, 1.0) now"),
        ("loss.label_smoothing", 0.0, "  loss.label_smoothing: 0.1 there, 0.0 now"),
        ("optimizer.learning_rate", 0.5, "  optimizer.learning_rate: 0.001 there, 0.5 now"),
        ("ema.decay", 0.9, "  ema.decay: 0.0 there, 0.9 now"),
    ],
)
def test_another_run_is_refused(config, saved, tmp_path, name, value, words):
    config.update_from_flattened_dict({name: value, "log.every_steps": 3})
    with pytest.raises(ValueError, match=r"holds a run with other settings") as error:
        check_same_run(config, tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds a run with other settings:\n{words}\n"
        "train into another --workdir, or set these back to resume that run"
    )


def test_option_of_the_model_makes_another_run(config, saved, tmp_path):
    with config.model.options.unlocked():
        config.model.options.kernel_size = 5
    config.seed = 3
    with pytest.raises(ValueError, match=r"kernel_size: None there, 5 now\n  seed: 0 there, 3 now"):
        check_same_run(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("schedule.total_steps", 100, "schedule.total_steps was None"),
        ("schedule.final_learning_rate", 0.0, "schedule.final_learning_rate was 1e-05"),
        ("mesh.fsdp", 2, "mesh.fsdp was 1 up to here and is 2 from here on"),
        ("evaluation.batch_size", 64, "evaluation.batch_size was 256"),
        ("checkpoint.keep", 5, "checkpoint.keep was 2"),
        ("log.every_steps", 10, "log.every_steps was 50"),
        ("on_nan", "roll back", "on_nan was 'stop'"),
        ("require_accelerator", True, "require_accelerator was False"),
        ("data.path", "/elsewhere", "data.path was ''"),
        ("data.num_workers", 4, "data.num_workers was 0"),
        ("data.max_corrupt_fraction", 0.5, "data.max_corrupt_fraction was 0.01"),
    ],
)
def test_settings_that_may_change_are_told(config, saved, tmp_path, caplog, name, value, words):
    config.update_from_flattened_dict({name: value})
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        check_same_run(config, tmp_path)
    (warning,) = caplog.records
    assert words in warning.getMessage()
    saved()
    check_same_run(config, tmp_path)
    assert len(caplog.records) == 1
