# SPDX-License-Identifier: Apache-2.0
"""What a workdir says about its run, and whether it is the run that a config means."""

import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mambaout_jax import __version__
from mambaout_jax.config import Config
from mambaout_jax.config_file import changed_settings, load_config, save_config
from mambaout_jax.runtime.checkpoint import read_meta
from mambaout_jax.runtime.files import write_json

CHECKPOINTS = "checkpoints"
SETTINGS = "settings"  # all of them, in the meta data of each checkpoint

_LOG = logging.getLogger("mambaout_jax")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")

# A run may change these when it resumes: they decide neither the model, nor the order of the data,
# nor what one update does.
FREE = ("schedule.", "mesh.", "evaluation.", "checkpoint.", "log.", "on_nan",
        "require_accelerator", "data.path", "data.num_threads", "data.num_workers",
        "data.prefetch_batches", "data.max_corrupt_fraction")  # fmt: skip


def check_same_run(config: Config, workdir: Path) -> None:
    """Refuses to resume a run under settings that would make it another one.

    The newest checkpoint says what its settings were. Where there is none nothing is resumed, and
    any settings will do.

    Raises:
        ValueError: the workdir holds a run with other settings; lists them.
    """
    meta = read_meta(workdir / CHECKPOINTS)
    if meta is None:
        return
    changed = changed_settings(ConfigDict(meta[SETTINGS]), config)
    for name, (old, new) in changed.items():
        if name.startswith(FREE):
            _LOG.warning("%s was %r up to here and is %r from here on", name, old, new)
    fixed = {name: values for name, values in changed.items() if not name.startswith(FREE)}
    if fixed:
        lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in fixed.items()]
        raise ValueError(
            f"{workdir} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "train into another --workdir, or set these back to resume that run"
        )


def check_nothing_foreign(workdir: Path, meaning: Mapping[str, Any]) -> None:
    """Refuses a folder where files that are not of a run have the names that this run will write.

    Args:
        meaning: as for `record_run`.

    Raises:
        FileExistsError: it is such a folder; names the files.
    """
    if any(path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*")):
        return
    try:
        load_config(workdir / "config.json")
        return
    except (FileNotFoundError, ValueError):
        names = ("config.json", *meaning, "environment.json", "metrics.jsonl")
    there = [name for name in names if os.path.lexists(workdir / name)]
    if there:
        raise FileExistsError(
            f"{workdir} holds {', '.join(there)}, but no training run; nothing is replaced: train "
            "into another directory, or move the files away"
        )


def record_run(config: Config, workdir: Path, meaning: Mapping[str, Any]) -> None:
    """Writes `config.json`, `environment.json` (of the latest start) and the task's own files.

    Args:
        meaning: what the model's outputs mean, JSON values by file name (`Task.record`).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir / "config.json")
    for name, value in meaning.items():
        write_json(workdir / name, value)
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git_revision": git_revision(),
        "versions": {
            "mambaout-jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
    }
    write_json(workdir / "environment.json", environment)


def git_revision() -> str | None:
    """Commit of this package's source tree, "-dirty" where files differ; None outside of git."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails for a copy in another project's .venv
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
