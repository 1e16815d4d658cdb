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
    [
        ("--config.sed=1", "there is no setting 'sed'"),
        ("--config.seed=x", "seed=x is not allowed; it must be a whole number from 0"),
        ("--config.seed=1" + 5000 * "0", "seed=1000*… is not allowed; it must be a whole number"),
        ("--config.batch_size=None", "batch_size=None is not allowed; it must be a whole number"),
        ("--config.log.wandb=maybe", r"log\.wandb=maybe is not allowed; it must be True or False"),
        ("--config.optimizer.b1=nan", r"optimizer\.b1=nan is not allowed; it must be a number fro"),
        ("--config.optimizer.freeze=abc,def", r"freeze=abc,def is not allowed; it must be"),
        ("--config.optimizer.freeze=5", r"freeze=\(5,\) is not allowed; it must be a tuple of reg"),
        ("--config.data.mean=grey", r"mean=\('grey',\) is not allowed; it must be a tuple with"),
        ("--config.optimizer.decay_rules=(5,)", r"decay_rules=\(5,\) is not allowed; .* pairs"),
        ("--config.optimizer.decay_rules[0][1]=0", "does not name a setting; .* given as a whole"),
        ("--config.=1", "'--config.=1' does not name a setting"),
        ("--config.model=5", r"model is a section; set what is in it, such as --config\.model\.na"),
        ("--config.seed.x=3", "there is no setting"),
        ("stray", "unexpected argument 'stray'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        override(tiny_run.get_config(), [setting])


def test_none_clears_what_may_be_none():
    config = override(tiny_run.get_config(), ["--config.schedule.total_steps=None"])
    assert config.schedule.total_steps is None
    assert config.schedule.warmup_steps == 5


BEGIN = "from mambaout_jax.config import default_config\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
        ("x = {}\ny = x['key']\n", "line 2: KeyError: 'key'"),
        ("def get_config():\n    return undefined\n", "line 2: NameError: name 'undefined' is no"),
        ("def get_config():\n    assert False, 'why'\n", "line 2: AssertionError: why"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named 'no_such_pack"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("def get_config():\n    return get_config()\n", "line 2: RecursionError: "),
        ("def get_config():\n    raise ValueError('sizes are 1, 2')\n", "line 2: sizes are 1, 2"),
        (f"{BEGIN}c = default_config()\nc.seeds = 3\n", "line 3: .*did you mean \"seed\""),
        (f"{BEGIN}c = default_config()\nc.seed = 'x'\n", "line 3: TypeError: Could not override"),
        (f"{BEGIN}c = default_config()\nc.ema.decay = 10**400\n", "line 3: OverflowError: "),
        ("def get_config():\n    return {'seed': 1}\n", ": a dict is no config; begin with"),
        ("def get_config():\n    pass\n", ": a NoneType is no config; begin with default_config"),
        ("get_config = 5\n", r" has no get_config\(\); see experiments/quickstart\.py"),
        ("def get_config(size):\n    pass\n", r": get_config\(size\) cannot be called with no arg"),
        (f"{BEGIN}def get_config():\n    c = default_config()\n    with c.unlocked():\n"
         "        del c.ema\n    return c\n", r": the config lacks ema\.decay; begin with def"),
        (f"{BEGIN}def get_config():\n    c = default_config()\n    c.mesh.fsdp = None\n"
         "    return c\n", r": mesh\.fsdp=None is not allowed; it must be a whole number from 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_a_sentence_with_its_line(tmp_path, text, words):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?i)^{path}(, )?{words}"):
        read_config(str(path))


def test_argument_that_a_file_does_not_take_is_named():
    words = (
        r"get_config\(\) cannot be called with the argument 'big'; give --config .*tiny_run\.py$"
    )
    with pytest.raises(ValueError, match=words):
        read_config(f"{TINY}:big")


@pytest.mark.parametrize("kind", [FileNotFoundError, RuntimeError])
def test_what_a_file_asks_for_and_is_not_there_keeps_its_kind(tmp_path, kind):
    path = tmp_path / "weights.py"
    path.write_text(f"def get_config():\n    raise {kind.__name__}('there are no weights x')\n")
    with pytest.raises(kind, match=r"there are no weights x$"):
        read_config(str(path))
