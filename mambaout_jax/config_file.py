# SPDX-License-Identifier: Apache-2.0
"""Reading config files (`experiments/*.py`), settings from the command line, saved settings."""

import contextlib
import inspect
import json
import re
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mambaout_jax.config import Config, default_config
from mambaout_jax.paths import local_path
from mambaout_jax.settings import RULES, check_settings, not_allowed


def read_config(file: str) -> Config:
    """The config that a Python file's `get_config` returns.

    Args:
        file: path of the file, followed by ":ARG" to call `get_config("ARG")`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is an address, has no `get_config`, fails, or does not return a config; names
            the line.
        OSError, RuntimeError: what it asked for itself is not there, such as pretrained weights.
    """
    path, argument = split_argument(file)
    path = str(local_path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no config file {path}; a clone of the project has them in experiments/"
        )
    with _explained(path):
        get_config = runpy.run_path(path).get("get_config")
    if not callable(get_config):
        raise ValueError(
            f"{path} has no get_config(); see experiments/quickstart.py for what a config file is"
        )
    given = () if argument is None else (argument,)
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        raise ValueError(
            f"{path}: get_config{inspect.signature(get_config)} cannot be called with "
            f"{f'the argument {argument!r}' if given else 'no argument'}; give "
            f"{f'--config {path}' if given else f'--config {path}:ARG'}"
        ) from error
    with _explained(path):
        config = get_config(*given)
        check_settings(config)
    return config


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """What goes wrong in a config file becomes a sentence with the line where it did."""
    try:
        yield
    except OSError:  # of weights or data that the file asks for
        raise
    except (Exception, SystemExit) as error:
        text, _, listing = str(error).partition(" Other fields present")  # of all settings
        if listing:
            hint = re.search(r"Did you mean .*\?", listing)
            text = text.strip("'") + (f" {hint[0]}" if hint else "")
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)
        if isinstance(error, SyntaxError) and error.filename == path:
            line, text = error.lineno, error.msg
        if not isinstance(error, ValueError | AttributeError):
            text = f"{type(error).__name__}: {text}"
        kind = RuntimeError if type(error) is RuntimeError else ValueError  # a failed download
        raise kind(f"{path}, line {line}: {text}" if line else f"{path}: {text}") from error


def split_argument(file: str) -> tuple[str, str | None]:
    """Path and argument of "FILE.py:ARG"; the argument is None in "FILE.py"."""
    path, separator, argument = file.partition(".py:")  # the path itself may hold a colon
    return (f"{path}.py", argument) if separator else (file, None)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config with settings from the command line, such as "--config.batch_size=128".

    Raises:
        ValueError: there is no such setting, or its value is not allowed.
    """
    given = [argument for argument in overrides if not _clears(argument)]
    for argument in given:
        _check_name(argument)
    values = flags.FlagValues()
    argv = ["mambaout", *given]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        hint = str(error).strip("'\"").replace("\\'", "'").replace("\\n", ". ").replace("\n", ". ")
        raise ValueError(f"there is no setting {hint}") from error
    except flags.Error as error:
        raise ValueError(_explain_value(str(error))) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings look like --config.key=value")
    config = values["config"].value
    config.update_from_flattened_dict(
        {_name(argument): None for argument in overrides if _clears(argument)}
    )
    check_settings(config)
    return config


def _name(argument: str) -> str:
    return argument.partition("=")[0].removeprefix("--config.")


def _clears(argument: str) -> bool:
    """Whether it says None of a setting that may be None; a flag cannot."""
    name, _, value = argument.partition("=")
    rule = RULES.get(_name(name))
    return value == "None" and rule is not None and rule.accepts(None)


def _check_name(argument: str) -> None:
    """Refuses what looks like a setting and names none, or a part of one."""
    if not argument.startswith("--config."):
        return
    name = _name(argument)
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ValueError(
            f"{argument!r} does not name a setting; they look like --config.key=value, and are "
            "given as a whole: --config.data.mean='(0.5,)'"
        )
    inside = [key for key in RULES if key.startswith(f"{name}.")]
    if inside:
        raise ValueError(f"{name} is a section; set what is in it, such as --config.{inside[0]}=…")


def _explain_value(text: str) -> str:
    """A sentence for what absl says of a value that has the wrong type."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)
    if found and found[1] in RULES:
        return not_allowed(found[1], found[2])
    return text


def save_config(config: Config, path: Path) -> None:
    """Writes all settings as JSON; a process killed meanwhile leaves the old file intact."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    temporary.replace(path)


def load_config(path: Path) -> Config:
    """The settings that `save_config` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds an unknown setting, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; the folder should be the --workdir of a training run"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); put back a copy, or run the command that trained this "
            "run again, which writes the file anew"
        ) from error
    config = default_config()
    config.model.options.unlock()
    try:
        if not isinstance(saved, dict):
            raise ValueError("it holds no settings by name")
        config.update(_tuples(saved))
        check_settings(config)
    except (AttributeError, LookupError, TypeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{path} does not fit this version's settings: {error}") from error
    return config.lock()


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by dotted name, as (old value, new value)."""
    before = _flat(old)
    after = _flat(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _tuples(value)  # a list means the same
    return flat


def _tuples(value: Any) -> Any:
    """The value with tuples for lists: settings are tuples, which JSON writes as lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
