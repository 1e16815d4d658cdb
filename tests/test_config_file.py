# SPDX-License-Identifier: Apache-2.0
"""Config files and what a command line changes in them."""

from pathlib import Path

import pytest
from support import tiny_run

from mambaout_jax.config_file import load_config, override, read_config, split_argument

TINY = tiny_run.__file__


def test_settings_replace_those_of_the_file():
    config = override(
        read_config(TINY),
        [
            *("--config.batch_size=128", "--config.optimizer.learning_rate", "3e-4"),
            *("--config.augment.scale=(0.3, 1)", "--config.schedule.warmup_steps=7"),
            *("--config.log.tensorboard", "--config.model.drop_path=0.25"),
        ],
    )
    expected = tiny_run.get_config()
    expected.batch_size = 128
    expected.optimizer.learning_rate = 3e-4
    expected.augment.scale = (0.3, 1)
    expected.schedule.warmup_steps = 7
    expected.log.tensorboard = True
    expected.model.drop_path = 0.25
    assert config.to_dict() == expected.to_dict()
    assert config.is_locked


def test_word_after_the_file_is_handed_to_get_config(tmp_path):
    path = tmp_path / "sizes.py"
    path.write_text(
        "from mambaout_jax.config import default_config\n"
        "def get_config(size='tiny'):\n"
        "    config = default_config()\n"
        "    config.model.name = f'mambaout_{size}'\n"
        "    return config\n"
    )
    assert read_config(str(path)).model.name == "mambaout_tiny"
    assert read_config(f"{path}:base").model.name == "mambaout_base"


def test_the_file_may_be_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tiny.py").write_text(Path(tiny_run.__file__).read_text())
    assert read_config("~/tiny.py").seed == 0


@pytest.mark.parametrize(
    "content", [b"", b'{"seed": 1', b"\xff\xfe{}", b"size=1", b'{"seed": "gr\xf6\xdfe"}']
)
def test_damaged_settings_are_named_with_the_cure(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    words = rf"^{path} is damaged \(.*\); put back a copy, or run the command that trained this run"
    with pytest.raises(ValueError, match=words):
        load_config(path)


@pytest.mark.parametrize(
    ("file", "parts"),
    [("a/b.py", ("a/b.py", None)), ("a/b.py:", ("a/b.py", "")), ("b.py:x:y", ("b.py", "x:y")),
     ("c:/d/b.py:runs/e", ("c:/d/b.py", "runs/e"))],
)  # fmt: skip
def test_argument_stands_after_the_suffix(file, parts):
    assert split_argument(file) == parts


@pytest.mark.parametrize(
    ("setting", "words"),
    [("--config.sed=1", "there is no setting 'sed'"), ("--config.seed=x", "seed"),
     ("stray", "unexpected argument 'stray'")],
)  # fmt: skip
def test_wrong_settings_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        override(tiny_run.get_config(), [setting])
