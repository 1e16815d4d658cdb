# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training state: written in the background, checked when they are read.

`<directory>/<step>` holds two items, which Orbax writes. `state` is a flat dict from a leaf's name
to its array: so it can be read without the containers (dataclasses, optax tuples) it came from.
`meta` is JSON: the step, the caller's dict, and the shape, dtype and CRC-32 of every leaf, under a
CRC-32 of its own. The sums are here because a flipped byte of the data is read without an error,
and the step because folders can be copied and renamed.

A checkpoint that cannot be read, whose sums differ or whose step is not its name, is never used and
never deleted: the newest older one that is sound takes its place, and a warning says so.
"""

import dataclasses
import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mambaout_jax.runtime import leaves as leaves_of
from mambaout_jax.runtime.leaves import Leaves, Table
from mambaout_jax.runtime.processes import in_first_process

_LOG = logging.getLogger("mambaout_jax")
# How Orbax begins to name what it has not finished; used here for what is being deleted, too.
_UNFINISHED = ".orbax-checkpoint-tmp"
_ASIDE = "unreadable"
# Arrays of fewer bytes are written whole: to cut each of them into a part per device takes a
# program per shape, seconds at the first save of a run.
_SPLIT_BYTES = 2**20
# What a failed save is told by: Orbax and TensorStore wrap it in words of their own.
_CAUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
           errno.EIO, errno.ESTALE)  # fmt: skip

# From a checkpoint's path and table to the leaves to read and where to place them.
_Placement = Callable[[Path, Table], dict[str, jax.sharding.Sharding | None]]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory: its step, the state and the caller's `meta`."""

    step: int
    state: Any
    meta: dict[str, Any]


class SaveError(RuntimeError):
    """A checkpoint could not be written; says why, and which one is the newest.

    Threads of Orbax may then wait for minutes for a folder that never comes, and the end of the
    program with them: a program that has nothing else to do should end by `os._exit`.
    """


class Checkpointer:
    """Saves and restores the state of one run. A context manager; leaving it ends the last save.

    Every process of the run calls the same methods in the same order, with one shared directory.
    No other run may use the directory at the same time.

    Args:
        directory: made where it is missing. What killed saves have left in it is removed; of what
            is no checkpoint a warning tells.
        keep: newest checkpoints to keep; `wait` deletes older ones once a newer one is complete.
    """

    def __init__(self, directory: Path | str, *, keep: int):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._saving: ocp.AsyncResponse[None] | None = None
        self._context = ocp.Context()
        self._context.array.saving.min_slice_bytes_for_replica_parallel = _SPLIT_BYTES
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
        self._context.checkpointables.registry = registry
        in_first_process(self._clean)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; without a save still in the background."""
        return _steps(self.directory)

    @property
    def latest_path(self) -> Path | None:
        """Directory of the newest complete checkpoint."""
        steps = self.steps()
        return self.directory / str(steps[-1]) if steps else None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write `state`; the caller may donate its buffers as soon as this returns.

        Waits for the save before. A step that has a checkpoint is left as it is.

        Args:
            step: updates made so far.
            state: pytree of numeric `jax.Array`s, sharded in any way.
            meta: JSON-able.

        Raises:
            ValueError: a newer checkpoint exists.
            SaveError: the save before has failed, or the directory cannot be written to.
        """
        self.wait()
        steps = self.steps()
        if step in steps:
            return
        if steps and step < steps[-1]:
            raise ValueError(
                f"step {step} is older than the newest checkpoint {self.latest_path}; restore that "
                "one and resume from it, or save into another directory"
            )
        leaves = leaves_of.flatten(state)
        items = {"state": leaves, "meta": _seal(step, meta, leaves_of.describe(leaves))}
        try:
            in_first_process(lambda: self._probe(step))
            with self._context:
                path = str(self.directory / str(step))
                self._saving = ocp.save_checkpointables_async(path, items)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Blocks until the last save is complete, then deletes the checkpoints beyond `keep`.

        Raises:
            SaveError: it has failed; names the newest complete checkpoint.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:
            raise self._failure(error) from error
        in_first_process(self._delete_old)

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest sound checkpoint, or None where there is none at all.

        Newer ones that cannot be read are moved to `<directory>/unreadable`, so that their steps
        can be saved again, but only once an older one has been read: if reading fails for a reason
        outside of the checkpoints, all of them stay in place.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, of any mesh.

        Raises:
            ValueError: the checkpoint is sound but of another model or optimizer; lists the leaves
                that are missing, unexpected or of another shape or dtype. Nothing is moved.
            RuntimeError: no checkpoint can be read; gives the reason for each.
        """
        self.wait()
        wanted = leaves_of.flatten(abstract_state)

        def placement(path: Path, table: Table) -> dict[str, jax.sharding.Sharding | None]:
            leaves_of.match(path, table, wanted)
            return {name: x.sharding for name, x in wanted.items()}

        found, unreadable = _read_newest(self.directory, placement)
        if unreadable:
            in_first_process(lambda: self._set_aside(unreadable))
        if found is None:
            return None
        leaves = [found.state[name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return dataclasses.replace(found, state=state)

    def _clean(self) -> None:
        if self.directory.is_file():
            raise NotADirectoryError(
                f"{self.directory} is a file, where the folder of the checkpoints should be; move "
                "it away"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in self.directory.iterdir())
        for name in names:
            if _UNFINISHED in name:
                _remove(self.directory / name)
            elif name != _ASIDE and not name.startswith(".") and not _is_step(name):
                _LOG.warning("%s is no checkpoint and is ignored", self.directory / name)

    def _probe(self, step: int) -> None:
        """Fails at once where a folder cannot be made; Orbax would wait for it for minutes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{step}{_UNFINISHED}-probe"
        path.mkdir(exist_ok=True)
        path.rmdir()

    def _failure(self, error: Exception) -> SaveError:
        causes = (os.strerror(code) for code in _CAUSES)
        reason = next((cause for cause in causes if cause in str(error)), _reason(error))
        newest = self.latest_path
        return SaveError(
            f"a checkpoint could not be written to {self.directory}: {reason}. "
            + (f"The newest complete one is {newest}" if newest else "There is no complete one")
            + "; check the free space and the permissions there, then run the same command again "
            + ("to resume from it" if newest else "to start from the first step")
        )

    def _delete_old(self) -> None:
        for step in self.steps()[: -self._keep]:
            # Renamed first: a kill in between must not leave half of one under a step's name.
            path = self.directory / f"{step}{_UNFINISHED}-deleted"
            (self.directory / str(step)).rename(path)
            _remove(path)

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            target = _free_path(self.directory / _ASIDE / str(step))
            target.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(target)
            _LOG.warning("checkpoint %d is moved to %s", step, target)


def read_checkpoint(directory: Path | str) -> Restored:
    """The newest sound checkpoint as nested dicts of `np.ndarray`, without a model to read it into.

    Containers of the state appear as dicts: the fields of a dataclass or named tuple by their
    names, the entries of a tuple or list as "0", "1", … Changes nothing in the directory.

    Args:
        directory: the one given to `Checkpointer`.

    Raises:
        FileNotFoundError: it holds no checkpoint.
        RuntimeError: no checkpoint can be read; gives the reason for each.
    """
    directory = Path(directory).absolute()
    found, _ = _read_newest(directory, lambda _, table: dict.fromkeys(table))
    if found is None:
        raise FileNotFoundError(
            f"no checkpoint in {directory}; it should hold directories named by their step, as "
            "training writes them into <workdir>/checkpoints"
        )
    return dataclasses.replace(found, state=traverse_util.unflatten_dict(found.state, sep="/"))


def read_meta(directory: Path | str) -> dict[str, Any] | None:
    """The caller's `meta` of the newest checkpoint that has it undamaged; its state is not read.

    Args:
        directory: the one given to `Checkpointer`.

    Returns:
        None where no checkpoint has.
    """
    directory = Path(directory).absolute()
    for step in reversed(_steps(directory)):
        try:
            return _read_sealed(directory, step)["meta"]
        except _UnreadableError:
            continue
    return None


class _UnreadableError(Exception):
    """A checkpoint is damaged or incomplete; says how."""


def _read_newest(directory: Path, placement: _Placement) -> tuple[Restored | None, list[int]]:
    """The newest sound checkpoint with flat leaves, and the newer steps that could not be read."""
    reasons: dict[int, str] = {}
    for step in reversed(_steps(directory)):
        try:
            leaves, meta = _read(directory, step, placement)
        except _UnreadableError as error:
            reasons[step] = str(error)
            continue
        for bad, reason in reasons.items():
            _LOG.warning(
                "checkpoint %d in %s cannot be read (%s); step %d is used instead",
                bad, directory, reason, step,
            )  # fmt: skip
        return Restored(step, leaves, meta), list(reasons)
    if reasons:
        listed = "".join(f"\n  {step}: {reason}" for step, reason in reasons.items())
        raise RuntimeError(
            f"no checkpoint in {directory} can be read:{listed}\nAll of them stay in place. Put "
            "back a copy of one, or move the directory away to start from the first step"
        )
    return None, []


def _read(directory: Path, step: int, placement: _Placement) -> tuple[Leaves, dict[str, Any]]:
    path, sealed = directory / str(step), _read_sealed(directory, step)
    table = sealed["leaves"]
    shardings = placement(path, table)
    leaves = _agreed(lambda: leaves_of.read(path / "state", table, shardings))
    # A step of its own: the sums gather across processes, so all of them must get here.
    _agreed(lambda: leaves_of.check(leaves, table))
    return leaves, sealed["meta"]


def _read_sealed(directory: Path, step: int) -> dict[str, Any]:
    path = directory / str(step) / "meta" / "data.json"
    return _agreed(lambda: _unseal(json.loads(path.read_bytes()), step))


def _agreed(read: Callable[[], Any]) -> Any:
    """`read()`; raises `_UnreadableError` in every process if it raises in one."""
    value, reason = None, ""
    try:
        value = read()
    except Exception as error:  # damage surfaces as anything from KeyError to a bare Exception
        reason = _reason(error)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(bool(reason)))
        reason = reason or ("another process cannot read it" if failed.any() else "")
    if reason:
        raise _UnreadableError(reason)
    return value


def _steps(directory: Path) -> list[int]:
    # A save gets its final name when it is complete.
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _is_step(path.name))


def _is_step(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))  # 0060 would not be found again by its step


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _seal(step: int, meta: dict[str, Any], table: Table) -> dict[str, Any]:
    # Through JSON first: keys become strings and tuples lists, as they will be when read.
    sealed = json.loads(json.dumps({"step": step, "meta": meta, "leaves": table}))
    return {**sealed, "crc32": _json_crc32(sealed)}


def _unseal(sealed: dict[str, Any], step: int) -> dict[str, Any]:
    content = {key: value for key, value in sealed.items() if key != "crc32"}
    if sealed["crc32"] != _json_crc32(content):
        raise ValueError("the CRC-32 of its meta data differs")
    if content["step"] != step:
        raise ValueError(f"it holds step {content['step']}, so it was copied or renamed")
    return content


def _json_crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    # The first line: TensorStore appends its whole specification.
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _free_path(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
