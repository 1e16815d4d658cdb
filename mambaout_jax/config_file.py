# SPDX-License-Identifier: Apache-2.0
"""Reading config files (`experiments/*.py`), settings from the command line, saved settings."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mambaout_jax.config import Config, default_config
from mambaout_jax.paths import local_path


def read_config(file: str) -> Config:
    """The config that a Python file's `get_config` returns.

    Args:
        file: path of the file, followed by ":ARG" to call `get_config("ARG")`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is an address, has no `get_config`, or sets something that is not a setting.
    """
    path, argument = split_argument(file)
    path = str(local_path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no config file {path}; a clone of the project has them in experiments/"
        )
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ValueError(
            f"{path} has no get_config(); see experiments/quickstart.py for what a config file is"
        )
    try:
        return get_config() if argument is None else get_config(argument)
    except AttributeError as error:  # its message ends with a list of all settings
        first, _, _ = str(error).partition(" Other fields present")
        raise ValueError(f"{path}: {first}") from error


def split_argument(file: str) -> tuple[str, str | None]:
    """Path and argument of "FILE.py:ARG"; the argument is None in "FILE.py"."""
    path, separator, argument = file.partition(".py:")  # the path itself may hold a colon
    return (f"{path}.py", argument) if separator else (file, None)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config with settings from the command line, such as "--config.batch_size=128".

    Raises:
        ValueError: there is no such setting, or its value has the wrong type.
    """
    values = flags.FlagValues()
    argv = ["mambaout", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        hint = str(error).strip("'\"").replace("\\'", "'").replace("\\n", ". ").replace("\n", ". ")
        raise ValueError(f"there is no setting {hint}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings look like --config.key=value")
    return values["config"].value


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
        config.update(_tuples(saved))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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
