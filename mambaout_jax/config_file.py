# SPDX-License-Identifier: Apache-2.0
"""Config files, `experiments/*.py`, and the settings that a command line changes in them."""

import runpy
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mambaout_jax.config import Config


def read_config(file: str) -> Config:
    """The config that `get_config` of a Python file returns.

    Args:
        file: path, with ":ARG" after it where `get_config` takes an argument.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no `get_config`, or sets what is no setting.
    """
    path, argument = split_argument(file)
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
    except AttributeError as error:  # its message lists every setting there is
        first, _, _ = str(error).partition(" Other fields present")
        raise ValueError(f"{path}: {first}") from error


def split_argument(file: str) -> tuple[str, str | None]:
    """Path and argument of "FILE.py:ARG"; None without one."""
    path, separator, argument = file.partition(".py:")  # the path itself may hold a colon
    return (f"{path}.py", argument) if separator else (file, None)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config with settings from the command line, such as "--config.batch_size=128".

    Raises:
        ValueError: one names no setting, or has a value of the wrong type.
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
